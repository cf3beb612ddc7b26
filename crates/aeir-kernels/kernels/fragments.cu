// Batch normalisation of fragments, one channel a place, with tanh behind it; scores of self-attention; best matching fragments.
//
// x [B, T, D], mask [B, T] with 1 for real fragments.

#include "warp.cuh"

// Of the rows of each place in a chunk of items: count, mean, and sum of squares around it, [T, chunks, 3]. Block x: place, y: chunk.
extern "C" __global__ void place_moments(
    const float* x, const float* mask, float* out, uint32_t items, uint32_t places, uint32_t width, uint32_t per_chunk) {
    __shared__ float space[2 * WARP];
    const uint32_t place = blockIdx.x, first = blockIdx.y * per_chunk, end = min(first + per_chunk, items);
    float sums[2] = {0.0f, 0.0f};
    for (uint32_t item = first; item < end; item++) {
        const size_t row = (size_t)item * places + place;
        if (mask[row] == 0.0f) continue;
        for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
            sums[0] += x[row * width + i];
            sums[1] += 1.0f;
        }
    }
    block_sums<2>(sums, space);
    const float count = sums[1], mean = count > 0.0f ? sums[0] / count : 0.0f;
    float squares[1] = {0.0f};
    for (uint32_t item = first; item < end; item++) {
        const size_t row = (size_t)item * places + place;
        if (mask[row] == 0.0f) continue;
        for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
            const float centred = x[row * width + i] - mean;
            squares[0] += centred * centred;
        }
    }
    block_sums<1>(squares, space);
    if (threadIdx.x == 0) {
        float* own = out + 3 * ((size_t)place * gridDim.y + blockIdx.y);
        own[0] = count;
        own[1] = mean;
        own[2] = squares[0];
    }
}

// Mean, biased variance and count of each place, [3, T], from the chunks' in order (Chan, Golub and LeVeque, 1983).
extern "C" __global__ void place_statistics(const float* moments, float* statistics, uint32_t places, uint32_t chunks) {
    const uint32_t place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= places) return;
    float count = 0.0f, mean = 0.0f, squares = 0.0f;
    for (uint32_t chunk = 0; chunk < chunks; chunk++) {
        const float* own = moments + 3 * ((size_t)place * chunks + chunk);
        if (own[0] == 0.0f) continue;
        const float all = count + own[0], apart = own[1] - mean;
        squares += own[2] + apart * apart * count * (own[0] / all);
        mean += apart * (own[0] / all);
        count = all;
    }
    statistics[place] = mean;
    statistics[places + place] = squares / fmaxf(count, 1.0f);
    statistics[2 * places + place] = count;
}

// tanh((x - mean) / deviation weight + bias). One warp a row.
extern "C" __global__ void normalised_tanh(
    const float* x, const float* statistics, const float* weight, const float* bias, float* y, uint32_t rows,
    uint32_t places, uint32_t width, float epsilon) {
    const uint32_t row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const uint32_t place = row % places;
    const float mean = statistics[place], scale = weight[place] / sqrtf(statistics[places + place] + epsilon);
    for (uint32_t i = threadIdx.x % WARP; i < width; i += WARP) {
        const size_t at = (size_t)row * width + i;
        y[at] = tanhf((x[at] - mean) * scale + bias[place]);
    }
}

// Of each place in a chunk of items: sums of the gradient before tanh, and of its products with the normalised values, [chunks, 2 T].
extern "C" __global__ void place_gradients(
    const float* x, const float* y, const float* upstream, const float* statistics, float* out, uint32_t items,
    uint32_t places, uint32_t width, uint32_t per_chunk, float epsilon) {
    __shared__ float space[2 * WARP];
    const uint32_t place = blockIdx.x, first = blockIdx.y * per_chunk, end = min(first + per_chunk, items);
    const float mean = statistics[place], scale = 1.0f / sqrtf(statistics[places + place] + epsilon);
    float sums[2] = {0.0f, 0.0f};
    for (uint32_t item = first; item < end; item++) {
        const size_t row = ((size_t)item * places + place) * width;
        for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
            const float inner = upstream[row + i] * (1.0f - y[row + i] * y[row + i]);
            sums[0] += inner;
            sums[1] += inner * ((x[row + i] - mean) * scale);
        }
    }
    block_sums<2>(sums, space);
    if (threadIdx.x == 0) {
        out[(size_t)blockIdx.y * 2 * places + place] = sums[0];
        out[(size_t)blockIdx.y * 2 * places + places + place] = sums[1];
    }
}

// The gradient of x; `sums` [2, T] over all items. Statistics are those of real fragments: through them flows nothing to padding.
extern "C" __global__ void normalised_tanh_backward(
    const float* x, const float* y, const float* upstream, const float* mask, const float* statistics,
    const float* weight, const float* sums, float* out, uint32_t rows, uint32_t places, uint32_t width, float epsilon) {
    const uint32_t row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const uint32_t place = row % places;
    const float mean = statistics[place], scale = 1.0f / sqrtf(statistics[places + place] + epsilon);
    const float share = mask[row] == 0.0f ? 0.0f : 1.0f / fmaxf(statistics[2 * places + place], 1.0f);
    const float sum = sums[place] * share, along = sums[places + place] * share;
    for (uint32_t i = threadIdx.x % WARP; i < width; i += WARP) {
        const size_t at = (size_t)row * width + i;
        const float inner = upstream[at] * (1.0f - y[at] * y[at]), normalised = (x[at] - mean) * scale;
        out[at] = (inner - sum - normalised * along) * scale * weight[place];
    }
}

// sum_d w_d g_bd x_btd: [B, T]. One warp a row.
extern "C" __global__ void gated_scores(
    const float* x, const float* gate, const float* weight, float* y, uint32_t rows, uint32_t places, uint32_t width) {
    const uint32_t row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const float *own = x + (size_t)row * width, *of_item = gate + (size_t)(row / places) * width;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % WARP; i < width; i += WARP) sum += own[i] * of_item[i] * weight[i];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) y[row] = sum;
}

// Gradients of x, of the gates [B, D], and what each item adds to that of the weight, [B, D]. Block x: columns, y: item.
extern "C" __global__ void gated_scores_backward(
    const float* x, const float* gate, const float* weight, const float* upstream, float* of_x, float* of_gate,
    float* of_weight, uint32_t places, uint32_t width) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x, item = blockIdx.y;
    if (column >= width) return;
    const float w = weight[column], g = gate[(size_t)item * width + column];
    float sum = 0.0f;
    for (uint32_t place = 0; place < places; place++) {
        const size_t row = (size_t)item * places + place;
        const float score = upstream[row];
        sum += score * x[row * width + column];
        of_x[row * width + column] = score * w * g;
    }
    of_gate[(size_t)item * width + column] = sum * w;
    of_weight[(size_t)item * width + column] = sum * g;
}

// The first of the largest of each row among those with mask 1, of all if there are none, and its place: cosines [E', T, E, F1], mask [T, F1]
// to values and places [E', T, E]. One warp a row; `per_item` E, `items` T.
extern "C" __global__ void best_fragments(
    const float* cosines, const float* mask, float* values, uint32_t* places, uint32_t rows, uint32_t per_item,
    uint32_t fragments, uint32_t items, uint32_t has_mask) {
    const uint32_t row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const uint32_t lane = threadIdx.x % WARP;
    const float* own = cosines + (size_t)row * fragments;
    const float* seen = mask + (size_t)(row / per_item % items) * fragments;
    float best = -INFINITY;
    uint32_t at = UINT32_MAX;
    for (uint32_t i = lane; i < fragments; i += WARP) {
        const float value = has_mask && seen[i] == 0.0f ? -INFINITY : own[i];
        if (at == UINT32_MAX || value > best) {
            best = value;
            at = i;
        }
    }
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const float other = __shfl_xor_sync(ALL, best, offset);
        const uint32_t there = __shfl_xor_sync(ALL, at, offset);
        if (there != UINT32_MAX && (at == UINT32_MAX || other > best || (other == best && there < at))) {
            best = other;
            at = there;
        }
    }
    if (lane == 0) {
        values[row] = own[at];
        places[row] = at;
    }
}

// Sums of `count` numbers each, in order. One warp a sum.
extern "C" __global__ void row_sums(const float* x, float* y, uint32_t rows, uint32_t count) {
    const uint32_t row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % WARP; i < count; i += WARP) sum += x[(size_t)row * count + i];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) y[row] = sum;
}

// Numbers of a row that a thread holds at once.
constexpr int HELD = 4;

// The gradient of the target: target item t's fragment f gets, of each of its K neighbours' fragments whose best it is, the fragment times the
// pair's gradient. `nearest` [T, K], `places` [T, K F2], `upstream` [T, K]. Block x: fragment, y: item.
extern "C" __global__ void matched_target_backward(
    const float* source, const uint32_t* nearest, const uint32_t* places, const float* upstream, float* out,
    uint32_t fragments, uint32_t neighbours, uint32_t source_fragments, uint32_t width, uint32_t sources) {
    const uint32_t fragment = blockIdx.x, item = blockIdx.y, entries = neighbours * source_fragments;
    const size_t row = ((size_t)item * fragments + fragment) * width;
    // Whole warps walk on: a lane looks for entries also where it has no column.
    for (uint32_t begin = 0; begin < width; begin += HELD * blockDim.x) {
        const uint32_t first = begin + threadIdx.x;
        float sums[HELD] = {};
        for (uint32_t start = 0; start < entries; start += WARP) {
            // Each warp looks for itself, a lane an entry.
            const uint32_t entry = start + threadIdx.x % WARP;
            const bool is_best = entry < entries && places[(size_t)item * entries + entry] == fragment;
            for (unsigned found = __ballot_sync(ALL, is_best); found != 0; found &= found - 1) {
                const uint32_t at = start + __ffs(found) - 1, pair = item * neighbours + at / source_fragments;
                const float gradient = upstream[pair];
                if (nearest[pair] >= sources) continue;
                const float* from = source + ((size_t)nearest[pair] * source_fragments + at % source_fragments) * width;
#pragma unroll
                for (int i = 0; i < HELD; i++) {
                    const uint32_t column = first + i * blockDim.x;
                    if (column < width) sums[i] += gradient * from[column];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const uint32_t column = first + i * blockDim.x;
            if (column < width) out[row + column] = sums[i];
        }
    }
}

// The gradient of the source: its item s's fragment f gets, of each target item that has s among its neighbours, the best fragment times the
// pair's gradient. Block x: fragment, y: item.
extern "C" __global__ void matched_source_backward(
    const float* target, const uint32_t* nearest, const uint32_t* places, const float* upstream, float* out,
    uint32_t targets, uint32_t fragments, uint32_t neighbours, uint32_t source_fragments, uint32_t width) {
    const uint32_t fragment = blockIdx.x, item = blockIdx.y, pairs = targets * neighbours;
    const size_t row = ((size_t)item * source_fragments + fragment) * width;
    // Whole warps walk on: a lane looks for entries also where it has no column.
    for (uint32_t begin = 0; begin < width; begin += HELD * blockDim.x) {
        const uint32_t first = begin + threadIdx.x;
        float sums[HELD] = {};
        for (uint32_t start = 0; start < pairs; start += WARP) {
            const uint32_t candidate = start + threadIdx.x % WARP;
            const bool is_own = candidate < pairs && nearest[candidate] == item;
            for (unsigned found = __ballot_sync(ALL, is_own); found != 0; found &= found - 1) {
                const uint32_t pair = start + __ffs(found) - 1;
                const uint32_t best = places[(size_t)pair * source_fragments + fragment];
                const float gradient = upstream[pair];
                const float* from = target + ((size_t)(pair / neighbours) * fragments + best) * width;
#pragma unroll
                for (int i = 0; i < HELD; i++) {
                    const uint32_t column = first + i * blockDim.x;
                    if (column < width) sums[i] += gradient * from[column];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const uint32_t column = first + i * blockDim.x;
            if (column < width) out[row + column] = sums[i];
        }
    }
}
