// Scaled dot-product attention, forward: keys in tiles of a warp's width, each query's softmax carried along from tile to tile.

#include "warp.cuh"

// Queries of a block, one a warp.
constexpr int QUERIES = 8;
// Numbers of a value vector that a lane holds.
constexpr int HELD = 4;

struct Strides {
    uint64_t item, head, token;
};

// q [B, H, Q, d], k [B, H, T, d], v [B, H, T, e], each with its strides and the last axis without gaps, to [B, Q, H, e]. `padding` [B, T]: 0
// hides a key; read where `has_padding` says so. A query sees keys at most `reach` away, and none behind it if `causal`. Block x: queries,
// y: item and head. Shared: a tile of keys and of values, and the queries; d, e at most 32 HELD.
extern "C" __global__ void attention(
    const float* q, const float* k, const float* v, const float* padding, float* y, Strides of_q, Strides of_k,
    Strides of_v, uint32_t heads, uint32_t queries, uint32_t keys, uint32_t dimension, uint32_t values, uint32_t reach,
    uint32_t causal, uint32_t has_padding, float scale) {
    extern __shared__ float space[];
    // One more a row, so that lanes that read different rows meet different banks.
    const uint32_t row = dimension + 1;
    float *tile_k = space, *tile_v = tile_k + WARP * row, *tile_q = tile_v + WARP * values;
    const uint32_t item = blockIdx.y / heads, head = blockIdx.y % heads;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t query = blockIdx.x * QUERIES + warp;
    q += item * of_q.item + head * of_q.head;
    k += item * of_k.item + head * of_k.head;
    v += item * of_v.item + head * of_v.head;
    float* own = tile_q + warp * dimension;
    if (query < queries) {
        for (uint32_t i = lane; i < dimension; i += WARP) own[i] = q[query * of_q.token + i] * scale;
    }
    float largest = -INFINITY, sum = 0.0f, mixed[HELD] = {};
    for (uint32_t start = 0; start < keys; start += WARP) {
        const uint32_t count = min(keys - start, (uint32_t)WARP);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < count * dimension; i += blockDim.x) {
            tile_k[i / dimension * row + i % dimension] = k[(start + i / dimension) * of_k.token + i % dimension];
        }
        for (uint32_t i = threadIdx.x; i < count * values; i += blockDim.x) {
            tile_v[i] = v[(start + i / values) * of_v.token + i % values];
        }
        __syncthreads();
        if (query >= queries) continue;
        const uint32_t key = start + lane;
        const uint32_t apart = key > query ? key - query : query - key;
        bool is_seen = lane < count && apart <= reach && !(causal && key > query);
        if (is_seen && has_padding) is_seen = padding[(size_t)item * keys + key] != 0.0f;
        float score = -INFINITY;
        if (is_seen) {
            score = 0.0f;
            for (uint32_t i = 0; i < dimension; i++) score += own[i] * tile_k[lane * row + i];
        }
        const float most = fmaxf(largest, warp_max(score));
        if (most == -INFINITY) continue;
        const float weight = is_seen ? expf(score - most) : 0.0f, kept = expf(largest - most);
        largest = most;
        sum = sum * kept + warp_sum(weight);
#pragma unroll
        for (int i = 0; i < HELD; i++) mixed[i] *= kept;
        for (uint32_t j = 0; j < count; j++) {
            const float share = __shfl_sync(ALL, weight, j);
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                const uint32_t at = lane + i * WARP;
                if (at < values) mixed[i] += share * tile_v[j * values + at];
            }
        }
    }
    if (query >= queries) return;
    // A query that sees no key gives zeros.
    const float share = sum > 0.0f ? 1.0f / sum : 0.0f;
    y += (((size_t)item * queries + query) * heads + head) * values;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const uint32_t at = lane + i * WARP;
        if (at < values) y[at] = mixed[i] * share;
    }
}
