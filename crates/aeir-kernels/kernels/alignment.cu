// Alignment of every word with every image: what lies between the matrix products of SAF and SGR.
//
// N images of R regions, M sentences of L words (padded), D numbers a fragment. Fragments of padding are zeros.

#include "warp.cuh"

constexpr float SLOPE = 0.1f, SHARPNESS = 9.0f;

// Fills `cosines` with leaky scores of an image's regions and a sentence's words [L, R], `squares` with each region's sum over the words.
__device__ void leaky_scores(
    const float* scores, float* cosines, float* squares, uint32_t words, uint32_t regions, size_t row_stride) {
    for (uint32_t i = threadIdx.x; i < words * regions; i += blockDim.x) {
        const float score = scores[(i / regions) * row_stride + i % regions];
        cosines[i] = score > 0.0f ? score : SLOPE * score;
    }
    __syncthreads();
    for (uint32_t region = threadIdx.x; region < regions; region += blockDim.x) {
        float sum = 0.0f;
        for (uint32_t word = 0; word < words; word++) sum += cosines[word * regions + region] * cosines[word * regions + region];
        squares[region] = sum;
    }
    __syncthreads();
}

// Weights of a word over the regions with mask 1, from its leaky scores; zeros without any.
__device__ void weights_of_word(
    const float* cosines, const float* squares, const float* mask, float* weights, uint32_t regions, int released) {
    const int lane = threadIdx.x % WARP;
    float largest = -1e30f;
    for (uint32_t r = lane; r < regions; r += WARP) {
        if (mask[r] != 0.0f) largest = fmaxf(largest, SHARPNESS * (cosines[r] / denominator(squares[r], released)));
    }
    largest = warp_max(largest);
    float sum = 0.0f;
    for (uint32_t r = lane; r < regions; r += WARP) {
        const float e =
            mask[r] != 0.0f ? mask[r] * expf(SHARPNESS * (cosines[r] / denominator(squares[r], released)) - largest) : 0.0f;
        weights[r] = e;
        sum += e;
    }
    const float scale = 1.0f / fmaxf(warp_sum(sum), 1e-30f);
    for (uint32_t r = lane; r < regions; r += WARP) weights[r] *= scale;
}

// scores [M L, N R] and mask [N, R] to weights [N, M L, R]. One block a pair (x: sentence, y: image); shared L R + R numbers.
extern "C" __global__ void attention_weights(
    const float* scores, const float* mask, float* weights, uint32_t words, uint32_t regions, uint32_t released) {
    extern __shared__ float space[];
    float *cosines = space, *squares = space + words * regions;
    const uint32_t sentence = blockIdx.x, image = blockIdx.y, sentences = gridDim.x, images = gridDim.y;
    const size_t row_stride = (size_t)images * regions;
    leaky_scores(
        scores + (size_t)sentence * words * row_stride + (size_t)image * regions, cosines, squares, words, regions, row_stride);
    weights += ((size_t)image * sentences + sentence) * words * regions;
    for (uint32_t word = threadIdx.x / WARP; word < words; word += blockDim.x / WARP) {
        weights_of_word(
            cosines + word * regions, squares, mask + (size_t)image * regions, weights + word * regions, regions, released);
    }
}

// The gradient of the scores, from that of the weights. Shared 2 L R + R numbers.
extern "C" __global__ void attention_weights_backward(
    const float* scores, const float* weights, const float* upstream, float* out, uint32_t words, uint32_t regions,
    uint32_t released) {
    extern __shared__ float space[];
    float *cosines = space, *gradients = space + words * regions, *squares = gradients + words * regions;
    const uint32_t sentence = blockIdx.x, image = blockIdx.y, sentences = gridDim.x, images = gridDim.y;
    const size_t row_stride = (size_t)images * regions;
    const size_t from = (size_t)sentence * words * row_stride + (size_t)image * regions;
    const size_t at = ((size_t)image * sentences + sentence) * words * regions;
    leaky_scores(scores + from, cosines, squares, words, regions, row_stride);
    const int lane = threadIdx.x % WARP;
    for (uint32_t word = threadIdx.x / WARP; word < words; word += blockDim.x / WARP) {
        const float* weight = weights + at + word * regions;
        const float* gradient = upstream + at + word * regions;
        float mean = 0.0f;
        for (uint32_t r = lane; r < regions; r += WARP) mean += weight[r] * gradient[r];
        mean = warp_sum(mean);
        for (uint32_t r = lane; r < regions; r += WARP) {
            gradients[word * regions + r] = SHARPNESS * weight[r] * (gradient[r] - mean);
        }
    }
    __syncthreads();
    for (uint32_t region = threadIdx.x; region < regions; region += blockDim.x) {
        float along = 0.0f;
        for (uint32_t word = 0; word < words; word++) along += cosines[word * regions + region] * gradients[word * regions + region];
        const float2 f = unit_factors(along, squares[region], released);
        for (uint32_t word = 0; word < words; word++) {
            const float cosine = cosines[word * regions + region];
            const float gradient = f.x * gradients[word * regions + region] - f.y * cosine;
            out[from + word * row_stride + region] = cosine > 0.0f ? gradient : SLOPE * gradient;
        }
    }
}

// Fours of a row that a lane holds: rows of up to 1,024 numbers are read once.
constexpr int FOURS = 8;

// `(unit(x) - word)^2`: x [N, W, D] and words [W, D] to [N, W, D]. One warp a row.
extern "C" __global__ void squared_differences(
    const float* x, const float* words, float* y, uint32_t images, uint32_t count, uint32_t width, uint32_t released) {
    const long long row = (long long)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= (long long)images * count) return;
    const int lane = threadIdx.x % WARP;
    const float* word = words + (size_t)(row % count) * width;
    x += row * width;
    y += row * width;
    float squares = 0.0f;
    if (width <= 4 * FOURS * WARP && in_fours(width, x, y) && in_fours(width, word, word)) {
        const float4 *from = reinterpret_cast<const float4*>(x), *other = reinterpret_cast<const float4*>(word);
        float4 held[FOURS];
#pragma unroll
        for (int n = 0; n < FOURS; n++) {
            const uint32_t i = lane + n * WARP;
            held[n] = i < width / 4 ? __ldcs(from + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            squares += dot4(held[n], held[n]);
        }
        const float scale = 1.0f / denominator(warp_sum(squares), released);
#pragma unroll
        for (int n = 0; n < FOURS; n++) {
            const uint32_t i = lane + n * WARP;
            if (i >= width / 4) break;
            const float4 v = held[n], w = other[i];
            const float a = v.x * scale - w.x, b = v.y * scale - w.y, c = v.z * scale - w.z, d = v.w * scale - w.w;
            reinterpret_cast<float4*>(y)[i] = make_float4(a * a, b * b, c * c, d * d);
        }
        return;
    }
    for (uint32_t i = lane; i < width; i += WARP) squares += x[i] * x[i];
    const float scale = 1.0f / denominator(warp_sum(squares), released);
    for (uint32_t i = lane; i < width; i += WARP) {
        const float difference = x[i] * scale - word[i];
        y[i] = difference * difference;
    }
}

// Gradients of x and of the words, summed over the images in order, for rows of which a thread holds `held` numbers. While one image's numbers
// are added up, those of the next are on their way.
template <int held>
__device__ void squared_differences_backward(
    const float* x, const float* words, const float* upstream, float* out, float* word_gradients, uint32_t images,
    uint32_t count, uint32_t width, uint32_t released) {
    __shared__ float space[3 * WARP];
    const uint32_t word = blockIdx.x;
    float w[held], total[held], v[held], g[held];
    const auto fetch = [&](uint32_t image, float (&v)[held], float (&g)[held]) {
        const size_t row = ((size_t)image * count + word) * width;
#pragma unroll
        for (int i = 0; i < held; i++) {
            const uint32_t column = threadIdx.x + i * blockDim.x;
            const bool is_there = image < images && column < width;
            v[i] = is_there ? __ldcs(x + row + column) : 0.0f;
            g[i] = is_there ? __ldcs(upstream + row + column) : 0.0f;
        }
    };
#pragma unroll
    for (int i = 0; i < held; i++) {
        const uint32_t column = threadIdx.x + i * blockDim.x;
        w[i] = column < width ? words[(size_t)word * width + column] : 0.0f;
        total[i] = 0.0f;
    }
    fetch(0, v, g);
    for (uint32_t image = 0; image < images; image++) {
        float next_v[held], next_g[held];
        fetch(image + 1, next_v, next_g);
        // Sums of x^2, x^2 g and x w g: with d the denominator, the gradient at unit(x) is 2 (x / d - w) g.
        float sums[3] = {0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < held; i++) {
            sums[0] += v[i] * v[i];
            sums[1] += v[i] * v[i] * g[i];
            sums[2] += v[i] * w[i] * g[i];
        }
        block_sums<3>(sums, space);
        const float scale = 1.0f / denominator(sums[0], released);
        const float2 f = unit_factors(2.0f * (sums[1] * scale - sums[2]), sums[0], released);
        const size_t row = ((size_t)image * count + word) * width;
#pragma unroll
        for (int i = 0; i < held; i++) {
            const uint32_t column = threadIdx.x + i * blockDim.x;
            const float gradient = 2.0f * (v[i] * scale - w[i]) * g[i];
            total[i] -= gradient;
            if (column < width) out[row + column] = f.x * gradient - f.y * v[i];
            v[i] = next_v[i];
            g[i] = next_g[i];
        }
    }
#pragma unroll
    for (int i = 0; i < held; i++) {
        const uint32_t column = threadIdx.x + i * blockDim.x;
        if (column < width) word_gradients[(size_t)word * width + column] = total[i];
    }
}

// One block a word, rows of at most four or eight numbers a thread.
extern "C" __global__ void squared_differences_backward_4(
    const float* x, const float* words, const float* upstream, float* out, float* word_gradients, uint32_t images,
    uint32_t count, uint32_t width, uint32_t released) {
    squared_differences_backward<4>(x, words, upstream, out, word_gradients, images, count, width, released);
}

extern "C" __global__ void squared_differences_backward_8(
    const float* x, const float* words, const float* upstream, float* out, float* word_gradients, uint32_t images,
    uint32_t count, uint32_t width, uint32_t released) {
    squared_differences_backward<8>(x, words, upstream, out, word_gradients, images, count, width, released);
}

// `(a_n - b_m)^2`: a [N, D] and b [M, D] to [N, M, D].
extern "C" __global__ void pair_squares(const float* a, const float* b, float* y, uint32_t rows, uint32_t columns, uint32_t width) {
    const size_t count = (size_t)rows * columns * width, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const size_t pair = i / width, column = i % width;
        const float difference = a[pair / columns * width + column] - b[pair % columns * width + column];
        y[i] = difference * difference;
    }
}

// The gradient of a (`of_rows` 1) or b (0): 2 (a_n - b_m) g summed over the other, in order; b's has the other sign.
extern "C" __global__ void pair_squares_backward(
    const float* a, const float* b, const float* upstream, float* out, uint32_t rows, uint32_t columns, uint32_t width,
    uint32_t of_rows) {
    const uint32_t own = of_rows ? rows : columns, other = of_rows ? columns : rows;
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)own * width) return;
    const size_t item = i / width, column = i % width;
    const float here = of_rows ? a[i] : b[i];
    float sum = 0.0f;
    for (uint32_t j = 0; j < other; j++) {
        const size_t pair = of_rows ? item * columns + j : j * columns + item;
        const float there = of_rows ? b[(size_t)j * width + column] : a[(size_t)j * width + column];
        sum += 2.0f * (here - there) * upstream[pair * width + column];
    }
    out[i] = sum;
}
