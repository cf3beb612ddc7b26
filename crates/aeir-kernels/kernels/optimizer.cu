// A parameter's update in one pass, and norms of gradients.

#include "warp.cuh"

// In place: w = w kept - rate m / (sqrt(v) / root + epsilon), with m and v the moments of g scale known + decay w; `scale` is one number,
// read where `has_scale` says so.
extern "C" __global__ void adam(
    float* weights, const float* gradients, float* first, float* second, const float* scale, uint64_t count,
    float known, float beta1, float beta2, float epsilon, float rate, float root, float kept, float decay,
    uint32_t has_scale) {
    const float factor = has_scale ? known * scale[0] : known;
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const float weight = weights[i], gradient = gradients[i] * factor + decay * weight;
        const float m = beta1 * first[i] + (1.0f - beta1) * gradient;
        const float v = beta2 * second[i] + (1.0f - beta2) * gradient * gradient;
        first[i] = m;
        second[i] = v;
        weights[i] = weight * kept - rate * m / (sqrtf(v) / root + epsilon);
    }
}

// The sum of squares of each block's numbers.
extern "C" __global__ void sums_of_squares(const float* x, float* out, uint64_t count) {
    __shared__ float space[WARP];
    float sum[1] = {0.0f};
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) sum[0] += x[i] * x[i];
    block_sums<1>(sum, space);
    if (threadIdx.x == 0) out[blockIdx.x] = sum[0];
}

// The sum of all numbers, by one block.
extern "C" __global__ void total(const float* x, float* out, uint32_t count) {
    __shared__ float space[WARP];
    float sum[1] = {0.0f};
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) sum[0] += x[i];
    block_sums<1>(sum, space);
    if (threadIdx.x == 0) out[0] = sum[0];
}
