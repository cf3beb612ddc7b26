// Sums over the threads of a warp and of a block, in one order.

#pragma once
#include <stdint.h>

constexpr unsigned ALL = 0xffffffffu;
constexpr int WARP = 32;

__device__ __forceinline__ float warp_sum(float value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL, value, offset);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(ALL, value, offset));
    return value;
}

__device__ __forceinline__ float dot4(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// Whether rows of this width can be read four numbers at once.
__device__ __forceinline__ bool in_fours(int width, const void* a, const void* b) {
    return width % 4 == 0 && ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) & 15) == 0;
}

// Adds up `count` numbers of each thread over the block; every thread gets the sums. `space` has room for 32 * count.
template <int count>
__device__ __forceinline__ void block_sums(float (&values)[count], float* space) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int i = 0; i < count; i++) values[i] = warp_sum(values[i]);
    __syncthreads();
    if (lane == 0) {
#pragma unroll
        for (int i = 0; i < count; i++) space[warp * count + i] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < count; i++) {
        values[i] = 0.0f;
        for (int other = 0; other < warps; other++) values[i] += space[other * count + i];
    }
}

// How a row becomes a unit vector: what it is divided by, from the sum of its squares.
__device__ __forceinline__ float denominator(float squares, int released) {
    return released ? sqrtf(squares) + 1e-8f : sqrtf(squares + 1e-12f);
}

// With y = x / d the gradient is a g - b x: a and b from x . g and d.
__device__ __forceinline__ float2 unit_factors(float along, float squares, int released) {
    const float d = denominator(squares, released);
    if (!released) return make_float2(1.0f / d, along / (d * d * d));
    const float length = sqrtf(squares);
    // A row of zeros passes no gradient.
    return length > 0.0f ? make_float2(1.0f / d, along / (length * d * d)) : make_float2(0.0f, 0.0f);
}
