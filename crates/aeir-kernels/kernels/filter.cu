// SAF's gates: a batch-normalised logit for each alignment vector, and the gated mean of a pair's vectors.
//
// N images, M sentences of L words: local vectors [N, M L, S], global vectors [N, M, S]; a pair has P = L + 1 positions, the global one first.
// `mask` [M, L] is 1 for words and 0 for padding.

#include "warp.cuh"

__device__ __forceinline__ const float* vector_at(
    const float* local, const float* global, size_t pair, uint32_t position, uint32_t words, uint32_t width) {
    return position == 0 ? global + pair * width : local + (pair * words + position - 1) * width;
}

__device__ __forceinline__ bool is_real(const float* mask, uint32_t sentence, uint32_t position, uint32_t words) {
    return position == 0 || mask[(size_t)sentence * words + position - 1] != 0.0f;
}

// logits [N, M, P]; one warp a position.
extern "C" __global__ void gate_logits(
    const float* local, const float* global, const float* weight, const float* bias, float* logits, uint64_t count,
    uint32_t words, uint32_t width) {
    const uint64_t row = (uint64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= count) return;
    const uint32_t positions = words + 1;
    const float* x = vector_at(local, global, row / positions, row % positions, words, width);
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % WARP; i < width; i += WARP) sum += x[i] * weight[i];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) logits[row] = sum + bias[0];
}

// Mean, biased variance and count of each sentence's real logits over all images, [3, M]. One block a sentence.
extern "C" __global__ void gate_statistics(
    const float* logits, const float* mask, float* statistics, uint32_t images, uint32_t sentences, uint32_t words) {
    __shared__ float space[2 * WARP];
    const uint32_t sentence = blockIdx.x, positions = words + 1, count = images * positions;
    float sums[2] = {0.0f, 0.0f};
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const uint32_t position = i % positions;
        if (!is_real(mask, sentence, position, words)) continue;
        sums[0] += logits[((size_t)(i / positions) * sentences + sentence) * positions + position];
        sums[1] += 1.0f;
    }
    block_sums<2>(sums, space);
    const float mean = sums[0] / sums[1];
    float squares[1] = {0.0f};
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const uint32_t position = i % positions;
        if (!is_real(mask, sentence, position, words)) continue;
        const float centred = logits[((size_t)(i / positions) * sentences + sentence) * positions + position] - mean;
        squares[0] += centred * centred;
    }
    block_sums<1>(squares, space);
    if (threadIdx.x == 0) {
        statistics[sentence] = mean;
        statistics[sentences + sentence] = squares[0] / sums[1];
        statistics[2 * sentences + sentence] = sums[1];
    }
}

// The gates, divided by their sum, [N, M, P], the sums [N, M], and the gated mean [N, M, S]. `norm`: scale and shift. One block a pair
// (x: sentence, y: image); shared P numbers.
extern "C" __global__ void gated_mean(
    const float* local, const float* global, const float* logits, const float* mask, const float* statistics,
    const float* norm, float* gates, float* sums, float* y, uint32_t words, uint32_t width, float epsilon) {
    extern __shared__ float gate[];
    __shared__ float space[WARP];
    const uint32_t sentence = blockIdx.x, sentences = gridDim.x, positions = words + 1;
    const size_t pair = (size_t)blockIdx.y * sentences + sentence;
    const float mean = statistics[sentence], scale = norm[0] / sqrtf(statistics[sentences + sentence] + epsilon);
    float sum[1] = {0.0f};
    for (uint32_t p = threadIdx.x; p < positions; p += blockDim.x) {
        const float z = (logits[pair * positions + p] - mean) * scale + norm[1];
        gate[p] = is_real(mask, sentence, p, words) ? 1.0f / (1.0f + expf(-z)) : 0.0f;
        sum[0] += gate[p];
    }
    block_sums<1>(sum, space);
    const float total = sum[0] + 1e-8f;
    for (uint32_t p = threadIdx.x; p < positions; p += blockDim.x) {
        gate[p] /= total;
        gates[pair * positions + p] = gate[p];
    }
    if (threadIdx.x == 0) sums[pair] = total;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        float value = gate[0] * global[pair * width + i];
        const float* x = local + pair * words * width + i;
        for (uint32_t word = 0; word < words; word++) value += gate[word + 1] * x[(size_t)word * width];
        y[pair * width + i] = value;
    }
}

// The gradient of the normalised logits, [N, M, P], zeros at padding. One block a pair; shared P numbers.
extern "C" __global__ void gates_backward(
    const float* local, const float* global, const float* gates, const float* sums, const float* upstream, float* out,
    uint32_t words, uint32_t width) {
    extern __shared__ float gradient[];
    __shared__ float space[WARP];
    const uint32_t positions = words + 1;
    const size_t pair = (size_t)blockIdx.y * gridDim.x + blockIdx.x;
    for (uint32_t p = threadIdx.x / WARP; p < positions; p += blockDim.x / WARP) {
        float sum = 0.0f;
        // A gate of padding is exactly zero.
        if (gates[pair * positions + p] != 0.0f) {
            const float* x = vector_at(local, global, pair, p, words, width);
            for (uint32_t i = threadIdx.x % WARP; i < width; i += WARP) sum += x[i] * upstream[pair * width + i];
        }
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) gradient[p] = sum;
    }
    __syncthreads();
    float mean[1] = {0.0f};
    for (uint32_t p = threadIdx.x; p < positions; p += blockDim.x) mean[0] += gates[pair * positions + p] * gradient[p];
    block_sums<1>(mean, space);
    const float total = sums[pair];
    for (uint32_t p = threadIdx.x; p < positions; p += blockDim.x) {
        const float gate = gates[pair * positions + p] * total;
        out[pair * positions + p] = (gradient[p] - mean[0]) / total * gate * (1.0f - gate);
    }
}

// In place: the gradient of the logits from that of the normalised ones; `parameters` [M, 3] gets each sentence's part of the gradients
// of the gate's bias, of scale and of shift. `batch`: statistics are the batch's. One block a sentence.
extern "C" __global__ void gate_norm_backward(
    const float* logits, const float* mask, const float* statistics, const float* norm, float* gradients,
    float* parameters, uint32_t images, uint32_t sentences, uint32_t words, uint32_t batch, float epsilon) {
    __shared__ float space[2 * WARP];
    const uint32_t sentence = blockIdx.x, positions = words + 1, count = images * positions;
    const float mean = statistics[sentence], scale = 1.0f / sqrtf(statistics[sentences + sentence] + epsilon);
    float sums[2] = {0.0f, 0.0f};
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const size_t at = ((size_t)(i / positions) * sentences + sentence) * positions + i % positions;
        sums[0] += gradients[at];
        sums[1] += gradients[at] * ((logits[at] - mean) * scale);
    }
    block_sums<2>(sums, space);
    const float share = batch ? 1.0f / statistics[2 * sentences + sentence] : 0.0f;
    float bias[1] = {0.0f};
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const uint32_t position = i % positions;
        const size_t at = ((size_t)(i / positions) * sentences + sentence) * positions + position;
        float gradient = 0.0f;
        if (is_real(mask, sentence, position, words)) {
            const float normalised = (logits[at] - mean) * scale;
            gradient = norm[0] * scale * (gradients[at] - share * (sums[0] + normalised * sums[1]));
        }
        gradients[at] = gradient;
        bias[0] += gradient;
    }
    block_sums<1>(bias, space);
    if (threadIdx.x == 0) {
        parameters[3 * sentence] = bias[0];
        parameters[3 * sentence + 1] = sums[1];
        parameters[3 * sentence + 2] = sums[0];
    }
}

// Gradients of the vectors: gate times that of the mean, and the logit's times the gate's weight. One warp a position.
extern "C" __global__ void gated_vectors_backward(
    const float* gates, const float* logits, const float* upstream, const float* weight, float* local, float* global,
    uint64_t count, uint32_t words, uint32_t width) {
    const uint64_t row = (uint64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= count) return;
    const uint32_t positions = words + 1;
    const uint64_t pair = row / positions;
    const uint32_t position = row % positions;
    float* out = position == 0 ? global + pair * width : local + (pair * words + position - 1) * width;
    const float gate = gates[row], logit = logits[row];
    for (uint32_t i = threadIdx.x % WARP; i < width; i += WARP) out[i] = gate * upstream[pair * width + i] + logit * weight[i];
}

// What the gate's weight gets from `per_block` positions each, [blocks, S].
extern "C" __global__ void gate_weight_backward(
    const float* local, const float* global, const float* logits, float* out, uint64_t count, uint32_t words,
    uint32_t width, uint32_t per_block) {
    const uint64_t first = (uint64_t)blockIdx.x * per_block;
    const uint64_t end = min(first + per_block, count);
    const uint32_t positions = words + 1;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (uint64_t row = first; row < end; row++) {
            sum += logits[row] * vector_at(local, global, row / positions, row % positions, words, width)[i];
        }
        out[(size_t)blockIdx.x * width + i] = sum;
    }
}
