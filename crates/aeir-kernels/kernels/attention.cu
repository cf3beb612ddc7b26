// Scaled dot-product attention, forward: keys in tiles of a warp's width, each query's softmax carried along from tile to tile.

#include "warp.cuh"

// Queries that each warp of a block has: what is read of a key or a value serves all of them.
constexpr int QUERIES = 4;
// Numbers of a value vector that a lane holds.
constexpr int HELD = 4;

// A tile of `count` rows of so many fours, zeros behind them. Half a warp has a row's first sixteen fours.
__device__ __forceinline__ void fill(
    float* tile, uint32_t tile_stride, const float* from, uint64_t stride, uint32_t count, uint32_t fours) {
    const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (uint32_t key = threadIdx.x / 16; key < WARP; key += blockDim.x / 16) {
        for (uint32_t i = threadIdx.x % 16; i < fours; i += 16) {
            reinterpret_cast<float4*>(tile + key * tile_stride)[i] =
                key < count ? reinterpret_cast<const float4*>(from + key * stride)[i] : none;
        }
    }
}

struct Strides {
    uint64_t item, head, token;
};

// q [B, H, Q, d], k [B, H, T, d], v [B, H, T, e], each with its strides and the last axis without gaps, to [B, Q, H, e]; d and e
// multiples of 4, at most 32 HELD, and all rows 16-byte aligned. `padding` [B, T]: 0 hides a key; read where `has_padding` says so. A query sees keys at most `reach` away, and none behind
// it if `causal`. Block x: queries, y: item and head. Shared: tiles of keys and of values, the queries, and their weights.
extern "C" __global__ void attention(
    const float* q, const float* k, const float* v, const float* padding, float* y, Strides of_q, Strides of_k,
    Strides of_v, uint32_t heads, uint32_t queries, uint32_t keys, uint32_t dimension, uint32_t values, uint32_t reach,
    uint32_t causal, uint32_t has_padding, float scale) {
    extern __shared__ float4 shared[];
    // Four more a row: lanes that read different rows four numbers at once meet different banks.
    const uint32_t row = dimension + 4;
    float* tile_k = reinterpret_cast<float*>(shared);
    const int warps = blockDim.x / WARP;
    float *tile_q = tile_k + WARP * row, *tile_w = tile_q + warps * QUERIES * dimension;
    float* tile_v = tile_w + warps * QUERIES * WARP;
    const uint32_t item = blockIdx.y / heads, head = blockIdx.y % heads;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t first = (blockIdx.x * warps + warp) * QUERIES;
    q += item * of_q.item + head * of_q.head;
    k += item * of_k.item + head * of_k.head;
    v += item * of_v.item + head * of_v.head;
    float *own = tile_q + warp * QUERIES * dimension, *weights = tile_w + warp * QUERIES * WARP;
#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        for (uint32_t i = lane; i < dimension; i += WARP) {
            own[n * dimension + i] = first + n < queries ? q[(first + n) * of_q.token + i] * scale : 0.0f;
        }
    }
    float largest[QUERIES], sum[QUERIES], mixed[QUERIES][HELD];
#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        largest[n] = -INFINITY;
        sum[n] = 0.0f;
#pragma unroll
        for (int i = 0; i < HELD; i++) mixed[n][i] = 0.0f;
    }
    for (uint32_t start = 0; start < keys; start += WARP) {
        const uint32_t count = min(keys - start, (uint32_t)WARP);
        __syncthreads();
        fill(tile_k, row, k + start * of_k.token, of_k.token, count, dimension / 4);
        fill(tile_v, values, v + start * of_v.token, of_v.token, count, values / 4);
        __syncthreads();
        const uint32_t key = start + lane;
        const bool is_key = lane < count && !(has_padding && padding[(size_t)item * keys + key] == 0.0f);
        float scores[QUERIES] = {};
        const float4* of_key = reinterpret_cast<const float4*>(tile_k + lane * row);
        for (uint32_t i = 0; i < dimension / 4; i++) {
            const float4 number = of_key[i];
#pragma unroll
            for (int n = 0; n < QUERIES; n++) {
                scores[n] += dot4(reinterpret_cast<const float4*>(own + n * dimension)[i], number);
            }
        }
#pragma unroll
        for (int n = 0; n < QUERIES; n++) {
            const uint32_t query = first + n, apart = key > query ? key - query : query - key;
            const bool is_seen = is_key && query < queries && apart <= reach && !(causal && key > query);
            const float most = fmaxf(largest[n], warp_max(is_seen ? scores[n] : -INFINITY));
            // Where nothing is seen yet, all weights are zero.
            const float weight = is_seen ? expf(scores[n] - most) : 0.0f;
            const float kept = most == -INFINITY ? 0.0f : expf(largest[n] - most);
            largest[n] = most;
            sum[n] = sum[n] * kept + warp_sum(weight);
            weights[n * WARP + lane] = weight;
#pragma unroll
            for (int i = 0; i < HELD; i++) mixed[n][i] *= kept;
        }
        __syncwarp();
        for (uint32_t j = 0; j < count; j += 4) {
            float4 shares[QUERIES];
#pragma unroll
            for (int n = 0; n < QUERIES; n++) shares[n] = *reinterpret_cast<const float4*>(weights + n * WARP + j);
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                const uint32_t at = lane + i * WARP;
                if (at >= values) break;
                const float* of_value = tile_v + j * values + at;
                const float a = of_value[0], b = of_value[values], c = of_value[2 * values], d = of_value[3 * values];
#pragma unroll
                for (int n = 0; n < QUERIES; n++) {
                    mixed[n][i] += shares[n].x * a + shares[n].y * b + shares[n].z * c + shares[n].w * d;
                }
            }
        }
        __syncwarp();
    }
#pragma unroll
    for (int n = 0; n < QUERIES; n++) {
        const uint32_t query = first + n;
        if (query >= queries) break;
        // A query that sees no key gives zeros.
        const float share = sum[n] > 0.0f ? 1.0f / sum[n] : 0.0f;
        float* out = y + (((size_t)item * queries + query) * heads + head) * values;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const uint32_t at = lane + i * WARP;
            if (at < values) out[at] = mixed[n][i] * share;
        }
    }
}
