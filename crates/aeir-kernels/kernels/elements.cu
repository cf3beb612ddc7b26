// Operations on single numbers: what comes after a product, activations, dropout.

#include "warp.cuh"

// The activations of `ops::Activation`, in its order; 0 is none.
__device__ __forceinline__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float activated(float x, int kind) {
    switch (kind) {
        case 1: return x * normcdff(x);
        case 2: return x * logistic(1.5957691216057308f * x * (1.0f + 0.044715f * x * x));
        case 3: return x * logistic(1.702f * x);
        case 4: return x <= 0.0f ? 0.0f : x;
        case 5: return x <= 0.0f ? 0.0f : x > 6.0f ? 6.0f : x;
        case 6: return x * logistic(x);
        case 7: return tanhf(x);
        default: return x;
    }
}

__device__ __forceinline__ float gated_slope(float x, float inner, float slope) {
    const float gate = logistic(inner);
    return gate + x * gate * (1.0f - gate) * slope;
}

// The derivative at x.
__device__ __forceinline__ float slope(float x, int kind) {
    switch (kind) {
        case 1: return normcdff(x) + x * 0.3989422804014327f * expf(-0.5f * x * x);
        case 2:
            return gated_slope(
                x, 1.5957691216057308f * x * (1.0f + 0.044715f * x * x),
                1.5957691216057308f * (1.0f + 3.0f * 0.044715f * x * x));
        case 3: return gated_slope(x, 1.702f * x, 1.702f);
        case 4: return x > 0.0f ? 1.0f : 0.0f;
        case 5: return x > 0.0f && x < 6.0f ? 1.0f : 0.0f;
        case 6: return gated_slope(x, x, 1.0f);
        case 7: {
            const float y = tanhf(x);
            return 1.0f - y * y;
        }
        default: return 1.0f;
    }
}

extern "C" __global__ void activate(const float* x, float* y, uint64_t count, uint32_t kind) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) y[i] = activated(x[i], kind);
}

extern "C" __global__ void activate_backward(
    const float* x, const float* upstream, float* out, uint64_t count, uint32_t kind) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        out[i] = upstream[i] * slope(x[i], kind);
    }
}

// In place: y = activation(y + bias) + residual; bias and residual are read where the last two say so. A block's rows lie `gridDim.y` apart.
extern "C" __global__ void after_product(
    float* y, const float* bias, const float* residual, uint32_t rows, uint32_t width, uint32_t kind, uint32_t has_bias,
    uint32_t has_residual) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const float shift = has_bias ? bias[column] : 0.0f;
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const size_t i = row * width + column;
        const float value = activated(y[i] + shift, kind);
        y[i] = has_residual ? value + residual[i] : value;
    }
}

// The same, four numbers a thread: rows of a multiple of four, all 16-byte aligned.
extern "C" __global__ void after_product_in_fours(
    float4* y, const float4* bias, const float4* residual, uint32_t rows, uint32_t width, uint32_t kind,
    uint32_t has_bias, uint32_t has_residual) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x, fours = width / 4;
    if (column >= fours) return;
    const float4 shift = has_bias ? bias[column] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const size_t i = row * fours + column;
        float4 value = y[i];
        value.x = activated(value.x + shift.x, kind);
        value.y = activated(value.y + shift.y, kind);
        value.z = activated(value.z + shift.z, kind);
        value.w = activated(value.w + shift.w, kind);
        if (has_residual) {
            const float4 more = residual[i];
            value = make_float4(value.x + more.x, value.y + more.y, value.z + more.z, value.w + more.w);
        }
        y[i] = value;
    }
}

// The sums of columns, of `per_block` rows each, [blocks, width].
extern "C" __global__ void column_sums(const float* x, float* out, uint32_t rows, uint32_t width, uint32_t per_block) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const uint32_t first = blockIdx.y * per_block, end = min(first + per_block, rows);
    float sum = 0.0f;
    for (uint32_t row = first; row < end; row++) sum += x[(size_t)row * width + column];
    out[(size_t)blockIdx.y * width + column] = sum;
}

__device__ __forceinline__ uint32_t turn(uint32_t x, int by) { return x << by | x >> (32 - by); }

__device__ __forceinline__ void quarter(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
    a += b; d = turn(d ^ a, 16);
    c += d; b = turn(b ^ c, 12);
    a += b; d = turn(d ^ a, 8);
    c += d; b = turn(b ^ c, 7);
}

// y = x where the word of ChaCha8's stream at this place is not below the threshold, scaled; else 0.
// `key` are the generator's 8 words, `stream` its 2. A thread draws one block of 16 words, the first of which may begin before the values.
struct Generator {
    uint32_t key[8], stream[2];
};

extern "C" __global__ void dropout(
    const float* x, float* y, uint64_t count, uint64_t first_word, uint64_t threshold, float scale, Generator generator) {
    const uint64_t block = first_word / 16 + (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t input[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};
#pragma unroll
    for (int i = 0; i < 8; i++) input[4 + i] = generator.key[i];
    input[12] = (uint32_t)block;
    input[13] = (uint32_t)(block >> 32);
    input[14] = generator.stream[0];
    input[15] = generator.stream[1];
    uint32_t words[16];
#pragma unroll
    for (int i = 0; i < 16; i++) words[i] = input[i];
#pragma unroll
    for (int round = 0; round < 4; round++) {
        quarter(words[0], words[4], words[8], words[12]);
        quarter(words[1], words[5], words[9], words[13]);
        quarter(words[2], words[6], words[10], words[14]);
        quarter(words[3], words[7], words[11], words[15]);
        quarter(words[0], words[5], words[10], words[15]);
        quarter(words[1], words[6], words[11], words[12]);
        quarter(words[2], words[7], words[8], words[13]);
        quarter(words[3], words[4], words[9], words[14]);
    }
    // Neighbouring threads then take neighbouring values.
    __shared__ bool kept[256 * 16];
#pragma unroll
    for (int i = 0; i < 16; i++) kept[threadIdx.x * 16 + i] = (uint64_t)(words[i] + input[i]) >= threshold;
    __syncthreads();
    const int64_t begin = (int64_t)((first_word / 16 + (uint64_t)blockIdx.x * blockDim.x) * 16 - first_word);
    for (int i = threadIdx.x; i < 256 * 16; i += blockDim.x) {
        const int64_t place = begin + i;
        if (place >= 0 && place < (int64_t)count) y[place] = x[place] * (kept[i] ? scale : 0.0f);
    }
}

// Bytes [B, H W, 3] to what `table` [3, 256] says of them, [B, 3, H W].
extern "C" __global__ void pixel_values(const uint8_t* bytes, const float* table, float* y, uint32_t images, uint32_t plane) {
    const size_t count = (size_t)images * plane, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const size_t image = i / plane, place = i % plane;
#pragma unroll
        for (int channel = 0; channel < 3; channel++) {
            y[(image * 3 + channel) * plane + place] = table[channel * 256 + bytes[3 * i + channel]];
        }
    }
}
