// Operations on rows that each fit a warp: unit length, softmax, layer norm. One warp a row.

#include "warp.cuh"

// The row of this warp.
__device__ __forceinline__ long long row_of_warp() {
    return (long long)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
}

extern "C" __global__ void unit_rows(const float* x, float* y, uint32_t rows, uint32_t width, uint32_t released) {
    const long long row = row_of_warp();
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    x += row * width;
    y += row * width;
    float squares = 0.0f;
    if (in_fours(width, x, y)) {
        const float4* from = reinterpret_cast<const float4*>(x);
        float4* to = reinterpret_cast<float4*>(y);
        for (uint32_t i = lane; i < width / 4; i += WARP) squares += dot4(from[i], from[i]);
        const float scale = 1.0f / denominator(warp_sum(squares), released);
        for (uint32_t i = lane; i < width / 4; i += WARP) {
            const float4 v = from[i];
            to[i] = make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale);
        }
        return;
    }
    for (uint32_t i = lane; i < width; i += WARP) squares += x[i] * x[i];
    const float scale = 1.0f / denominator(warp_sum(squares), released);
    for (uint32_t i = lane; i < width; i += WARP) y[i] = x[i] * scale;
}

extern "C" __global__ void unit_rows_backward(
    const float* x, const float* upstream, float* out, uint32_t rows, uint32_t width, uint32_t released) {
    const long long row = row_of_warp();
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    x += row * width;
    upstream += row * width;
    out += row * width;
    float squares = 0.0f, along = 0.0f;
    if (in_fours(width, x, upstream) && in_fours(width, out, out)) {
        const float4* from = reinterpret_cast<const float4*>(x);
        const float4* gradient = reinterpret_cast<const float4*>(upstream);
        float4* to = reinterpret_cast<float4*>(out);
        for (uint32_t i = lane; i < width / 4; i += WARP) {
            squares += dot4(from[i], from[i]);
            along += dot4(from[i], gradient[i]);
        }
        const float2 f = unit_factors(warp_sum(along), warp_sum(squares), released);
        for (uint32_t i = lane; i < width / 4; i += WARP) {
            const float4 v = from[i], g = gradient[i];
            to[i] = make_float4(f.x * g.x - f.y * v.x, f.x * g.y - f.y * v.y, f.x * g.z - f.y * v.z, f.x * g.w - f.y * v.w);
        }
        return;
    }
    for (uint32_t i = lane; i < width; i += WARP) {
        squares += x[i] * x[i];
        along += x[i] * upstream[i];
    }
    const float2 f = unit_factors(warp_sum(along), warp_sum(squares), released);
    for (uint32_t i = lane; i < width; i += WARP) out[i] = f.x * upstream[i] - f.y * x[i];
}

// A row that is minus infinity throughout gives zeros.
extern "C" __global__ void softmax_rows(const float* x, float* y, uint32_t rows, uint32_t width) {
    const long long row = row_of_warp();
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    x += row * width;
    y += row * width;
    float largest = -INFINITY;
    for (uint32_t i = lane; i < width; i += WARP) largest = fmaxf(largest, x[i]);
    largest = warp_max(largest);
    if (largest == -INFINITY) {
        for (uint32_t i = lane; i < width; i += WARP) y[i] = 0.0f;
        return;
    }
    float sum = 0.0f;
    for (uint32_t i = lane; i < width; i += WARP) {
        const float e = expf(x[i] - largest);
        y[i] = e;
        sum += e;
    }
    const float scale = 1.0f / warp_sum(sum);
    for (uint32_t i = lane; i < width; i += WARP) y[i] *= scale;
}

extern "C" __global__ void softmax_rows_backward(
    const float* y, const float* upstream, float* out, uint32_t rows, uint32_t width) {
    const long long row = row_of_warp();
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    y += row * width;
    upstream += row * width;
    out += row * width;
    float mean = 0.0f;
    for (uint32_t i = lane; i < width; i += WARP) mean += y[i] * upstream[i];
    mean = warp_sum(mean);
    for (uint32_t i = lane; i < width; i += WARP) out[i] = y[i] * (upstream[i] - mean);
}

// `statistics` gets each row's mean and one over its deviation.
extern "C" __global__ void layer_norm(
    const float* x, const float* weight, const float* bias, float* y, float* statistics, uint32_t rows,
    uint32_t width, float epsilon) {
    const long long row = row_of_warp();
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    x += row * width;
    y += row * width;
    float sum = 0.0f;
    for (uint32_t i = lane; i < width; i += WARP) sum += x[i];
    const float mean = warp_sum(sum) / width;
    float squares = 0.0f;
    for (uint32_t i = lane; i < width; i += WARP) squares += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf(warp_sum(squares) / width + epsilon);
    for (uint32_t i = lane; i < width; i += WARP) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    if (lane == 0) {
        statistics[2 * row] = mean;
        statistics[2 * row + 1] = scale;
    }
}

extern "C" __global__ void layer_norm_backward(
    const float* x, const float* weight, const float* statistics, const float* upstream, float* out, uint32_t rows,
    uint32_t width) {
    const long long row = row_of_warp();
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    x += row * width;
    upstream += row * width;
    out += row * width;
    const float mean = statistics[2 * row], scale = statistics[2 * row + 1];
    float shared = 0.0f, along = 0.0f;
    for (uint32_t i = lane; i < width; i += WARP) {
        const float g = upstream[i] * weight[i];
        shared += g;
        along += g * ((x[i] - mean) * scale);
    }
    shared = warp_sum(shared) / width;
    along = warp_sum(along) / width;
    for (uint32_t i = lane; i < width; i += WARP) {
        const float g = upstream[i] * weight[i];
        out[i] = scale * (g - shared - (x[i] - mean) * scale * along);
    }
}

// Of `per_block` rows each: what the gradients of weight and bias get from them, [blocks, width] each.
extern "C" __global__ void layer_norm_parameters(
    const float* x, const float* statistics, const float* upstream, float* weights, float* biases, uint32_t rows,
    uint32_t width, uint32_t per_block) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const uint32_t first = blockIdx.y * per_block, end = min(first + per_block, rows);
    float weight = 0.0f, bias = 0.0f;
    for (uint32_t row = first; row < end; row++) {
        const size_t at = (size_t)row * width + column;
        weight += upstream[at] * ((x[at] - statistics[2 * row]) * statistics[2 * row + 1]);
        bias += upstream[at];
    }
    weights[(size_t)blockIdx.y * width + column] = weight;
    biases[(size_t)blockIdx.y * width + column] = bias;
}
