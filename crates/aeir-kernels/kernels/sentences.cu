// Words of sentences: the recurrence, states as padded unit rows, and gradients of rows chosen by an index.

#include "warp.cuh"

__device__ __forceinline__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

// One step of gated recurrent units, one a direction (E of them): `gates` [E, words, 3 D] of the input, `rows` [E, stride] with this step's n rows
// of it first, `hidden` [E, n, 3 D] = U h, `bias` [E, 3 D], `before` [E, n', D] the states of the step before, which the first step has not. The new
// states go to `state` [E, n, D] and to their rows of `states` [E, words, D]; `kept` [E, n, 4 D] gets r, z, n and U_n h + c_n.
extern "C" __global__ void recurrent_step(
    const float* gates, const uint32_t* rows, const float* hidden, const float* bias, const float* before,
    float* state, float* states, float* kept, uint32_t directions, uint32_t words, uint32_t row_stride,
    uint32_t count, uint32_t before_count, uint32_t units) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= directions * count * units) return;
    const uint32_t direction = i / (count * units), item = i / units % count, unit = i % units;
    const size_t row = (size_t)direction * words + rows[direction * row_stride + item];
    const float* input = gates + row * 3 * units + unit;
    const float* own = hidden + ((size_t)direction * count + item) * 3 * units + unit;
    const float* shift = bias + (size_t)direction * 3 * units + unit;
    const bool is_first = before_count == 0;
    const float h = is_first ? 0.0f : before[((size_t)direction * before_count + item) * units + unit];
    const float hr = (is_first ? 0.0f : own[0]) + shift[0];
    const float hz = (is_first ? 0.0f : own[units]) + shift[units];
    const float hn = (is_first ? 0.0f : own[2 * units]) + shift[2 * units];
    const float r = logistic(input[0] + hr), z = logistic(input[units] + hz), n = tanhf(input[2 * units] + r * hn);
    const float next = n + z * (h - n);
    state[i] = next;
    states[row * units + unit] = next;
    float* keep = kept + ((size_t)direction * count + item) * 4 * units + unit;
    keep[0] = r;
    keep[units] = z;
    keep[2 * units] = n;
    keep[3 * units] = hn;
}

// Backward through a step: `upstream` [E, words, D] by row, `carried` [E, n', D] (direct) and `product` [E, n', D] (through U) from the step after,
// which the first n' items have. Fills the rows of `gate_gradients` [E, words, 3 D], this step's of `hidden_gradients` [E, words, 3 D], step by step, from
// word `first` on, and `direct` [E, n, D].
extern "C" __global__ void recurrent_step_backward(
    const float* upstream, const uint32_t* rows, const float* before, const float* kept, const float* carried,
    const float* product, float* gate_gradients, float* hidden_gradients, float* direct, uint32_t directions,
    uint32_t words, uint32_t row_stride, uint32_t count, uint32_t before_count, uint32_t after, uint32_t units,
    uint32_t first) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= directions * count * units) return;
    const uint32_t direction = i / (count * units), item = i / units % count, unit = i % units;
    const size_t row = (size_t)direction * words + rows[direction * row_stride + item];
    float gradient = upstream[row * units + unit];
    if (item < after) {
        const size_t at = ((size_t)direction * after + item) * units + unit;
        gradient += carried[at] + product[at];
    }
    const float* keep = kept + ((size_t)direction * count + item) * 4 * units + unit;
    const float r = keep[0], z = keep[units], n = keep[2 * units], hn = keep[3 * units];
    const float h = before_count == 0 ? 0.0f : before[((size_t)direction * before_count + item) * units + unit];
    const float dn = gradient * (1.0f - z) * (1.0f - n * n);
    const float dz = gradient * (h - n) * z * (1.0f - z);
    const float dr = dn * hn * r * (1.0f - r);
    float* input = gate_gradients + row * 3 * units + unit;
    input[0] = dr;
    input[units] = dz;
    input[2 * units] = dn;
    float* own = hidden_gradients + ((size_t)direction * words + first + item) * 3 * units + unit;
    own[0] = dr;
    own[units] = dz;
    own[2 * units] = dn * r;
    direct[i] = gradient * z;
}

// `unit((a + b) / 2)` of the row that a place has, zeros where it has none (-1): a, b [rows, D], `row_of` [places] to [places, D]. One
// warp a place.
extern "C" __global__ void padded_unit_mean(
    const float* a, const float* b, const int32_t* row_of, float* y, uint32_t places, uint32_t width, uint32_t released) {
    const uint32_t place = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (place >= places) return;
    const int lane = threadIdx.x % WARP;
    const int32_t row = row_of[place];
    y += (size_t)place * width;
    if (row < 0) {
        for (uint32_t i = lane; i < width; i += WARP) y[i] = 0.0f;
        return;
    }
    a += (size_t)row * width;
    b += (size_t)row * width;
    float squares = 0.0f;
    for (uint32_t i = lane; i < width; i += WARP) {
        const float mean = (a[i] + b[i]) * 0.5f;
        squares += mean * mean;
    }
    const float scale = 1.0f / denominator(warp_sum(squares), released);
    for (uint32_t i = lane; i < width; i += WARP) y[i] = (a[i] + b[i]) * 0.5f * scale;
}

// The gradient of a, and of b: `place_of` [rows], -1 for a row that has no place.
extern "C" __global__ void padded_unit_mean_backward(
    const float* a, const float* b, const int32_t* place_of, const float* upstream, float* out, uint32_t rows,
    uint32_t width, uint32_t released) {
    const uint32_t row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    const int32_t place = place_of[row];
    out += (size_t)row * width;
    if (place < 0) {
        for (uint32_t i = lane; i < width; i += WARP) out[i] = 0.0f;
        return;
    }
    a += (size_t)row * width;
    b += (size_t)row * width;
    upstream += (size_t)place * width;
    float squares = 0.0f, along = 0.0f;
    for (uint32_t i = lane; i < width; i += WARP) {
        const float mean = (a[i] + b[i]) * 0.5f;
        squares += mean * mean;
        along += mean * upstream[i];
    }
    const float2 f = unit_factors(warp_sum(along), warp_sum(squares), released);
    for (uint32_t i = lane; i < width; i += WARP) out[i] = 0.5f * (f.x * upstream[i] - f.y * ((a[i] + b[i]) * 0.5f));
}

// Of each row of a table the sum of the gradients of its uses, in order: `ids` [uses], `upstream` [uses, D] to [rows, D]. One block a row.
extern "C" __global__ void chosen_rows_backward(
    const uint32_t* ids, const float* upstream, float* out, uint32_t uses, uint32_t width) {
    constexpr int HELD = 8;
    __shared__ uint32_t found[256];
    __shared__ uint32_t count;
    const uint32_t row = blockIdx.x;
    // In pieces of the width that the block holds.
    for (uint32_t first = 0; first < width; first += HELD * blockDim.x) {
        float sums[HELD] = {};
        for (uint32_t start = 0; start < uses; start += blockDim.x) {
            if (threadIdx.x == 0) count = 0;
            __syncthreads();
            const uint32_t use = start + threadIdx.x;
            const bool is_use = use < uses && ids[use] == row;
            // Warps put theirs behind one another in order.
            const unsigned votes = __ballot_sync(ALL, is_use);
            for (uint32_t warp = 0; warp < blockDim.x / WARP; warp++) {
                if (threadIdx.x / WARP == warp) {
                    const uint32_t at = count;
                    __syncwarp();
                    if (is_use) found[at + __popc(votes & ((1u << (threadIdx.x % WARP)) - 1))] = use;
                    __syncwarp();
                    if (threadIdx.x % WARP == 0) count = at + __popc(votes);
                }
                __syncthreads();
            }
            for (uint32_t j = 0; j < count; j++) {
                const float* from = upstream + (size_t)found[j] * width;
#pragma unroll
                for (int i = 0; i < HELD; i++) {
                    const uint32_t column = first + threadIdx.x + i * blockDim.x;
                    if (column < width) sums[i] += from[column];
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const uint32_t column = first + threadIdx.x + i * blockDim.x;
            if (column < width) out[(size_t)row * width + column] = sums[i];
        }
    }
}

// The rows of a table [V, W] that `ids` [N] names, [N, W]; zeros for an id that it has not, which the caller refuses. One warp a row.
extern "C" __global__ void chosen_rows(
    const float* table, const uint32_t* ids, float* y, uint32_t rows, uint32_t width, uint32_t table_rows) {
    const uint32_t row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const uint32_t id = ids[row];
    const float* from = table + (size_t)id * width;
    float* to = y + (size_t)row * width;
    const bool is_there = id < table_rows;
    if (in_fours(width, from, to)) {
        for (uint32_t i = threadIdx.x % WARP; i < width / 4; i += WARP) {
            reinterpret_cast<float4*>(to)[i] =
                is_there ? reinterpret_cast<const float4*>(from)[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        return;
    }
    for (uint32_t i = threadIdx.x % WARP; i < width; i += WARP) to[i] = is_there ? from[i] : 0.0f;
}
