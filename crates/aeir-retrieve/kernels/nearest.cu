// The best of each row of scores, in one pass over them.
//
// A row is one query's scores with a chunk of the gallery. It is cut into slices, a block of threads each. What a
// slice has found so far lies in `best` between two launches, so that the next chunk begins with the threshold that
// the chunks before it have left: of most chunks nothing but the scores is read.
//
// A score and its row become one number, larger for what comes first:
//
//   key = ordered bits of the score * 2^32 + (2^32 - 1 - row)
//
// All keys differ, so that the best `kept` of them are one set whatever the order in which threads come to them. 0 is
// no key: it stands for an empty place.

typedef unsigned long long Key;

// Threads of a block; the host launches so many.
constexpr unsigned THREADS = 256;
// Vectors of four scores that a thread fetches before it looks at them: enough of them on the way to keep memory busy.
constexpr unsigned DEPTH = 4;

// Bits that order as their floats do. Adding 0 turns -0 into +0: the two are equal scores.
__device__ __forceinline__ unsigned ordered(float score) {
    const unsigned bits = __float_as_uint(score + 0.0f);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ Key key_of(float score, unsigned row) {
    return (static_cast<Key>(ordered(score)) << 32) | static_cast<Key>(~row);
}

// The score of a key; below all others for an empty place.
__device__ __forceinline__ float score_of(Key key) {
    if (key == 0) {
        return -INFINITY;
    }
    const unsigned bits = static_cast<unsigned>(key >> 32);
    return __uint_as_float((bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits);
}

// Sorts `keys[0..count]`, descending; `count` is a power of two. Begins after and ends with a barrier.
__device__ void sort_descending(Key* keys, unsigned count) {
    for (unsigned size = 2; size <= count; size <<= 1) {
        for (unsigned stride = size >> 1; stride > 0; stride >>= 1) {
            for (unsigned pair = threadIdx.x; pair < count / 2; pair += THREADS) {
                const unsigned low = 2 * pair - (pair & (stride - 1));
                const unsigned high = low + stride;
                const Key left = keys[low];
                const Key right = keys[high];
                // Runs of `size` descend and ascend in turn; the last is the whole, and descends.
                if ((left < right) == ((low & size) == 0)) {
                    keys[low] = right;
                    keys[high] = left;
                }
            }
            __syncthreads();
        }
    }
}

// Takes the waiting keys among the best: `keys[0..kept]` is sorted afterwards, and nothing waits. All threads come
// here together, after a barrier behind the last write into `keys` and `waiting`; it ends with a barrier.
__device__ void take_waiting(Key* keys, unsigned kept, unsigned room, unsigned* waiting) {
    const unsigned filled = kept + min(*waiting, room - kept);
    unsigned count = 2;
    while (count < filled) {
        count <<= 1;
    }
    for (unsigned place = filled + threadIdx.x; place < count; place += THREADS) {
        keys[place] = 0;
    }
    __syncthreads();
    // Every thread has read it before the barrier; the sort's barriers show all of them what it is now.
    if (threadIdx.x == 0) {
        *waiting = 0;
    }
    sort_descending(keys, count);
}

// Launch: a grid of (slices, queries), THREADS threads, room * 8 bytes of shared memory.
//
// scores    [queries, stride]: a chunk's; 16-byte aligned, stride a multiple of 4, columns <= stride
// first     the row of the chunk's first column, a multiple of 4
// penalties by row, or null; taken off, divided by the query's length; as many as rows, rounded up to 4
// lengths   [queries]
// allowed   a bit a row, or null: rows that may be found
// best      [queries, slices, kept]: keys, descending; zeros before the first chunk
// room      a power of two, more than kept
extern "C" __global__ void __launch_bounds__(THREADS) nearest_of_scores(
    const float* __restrict__ scores, const Key stride, const unsigned first, const unsigned columns,
    const float* __restrict__ penalties, const float* __restrict__ lengths, const unsigned* __restrict__ allowed,
    Key* __restrict__ best, const unsigned kept, const unsigned room) {
    // The best so far, descending, then those that wait to be taken among them.
    extern __shared__ Key keys[];
    __shared__ unsigned waiting;

    const unsigned query = blockIdx.y;
    Key* own = best + (static_cast<Key>(query) * gridDim.x + blockIdx.x) * kept;
    for (unsigned place = threadIdx.x; place < kept; place += THREADS) {
        keys[place] = own[place];
    }
    if (threadIdx.x == 0) {
        waiting = 0;
    }
    __syncthreads();
    Key threshold = keys[kept - 1];
    float least = score_of(threshold);

    // In vectors of four. Beyond the last column a vector may hold anything, inside the stride.
    const unsigned vectors = columns / 4 + (columns % 4 != 0);
    const unsigned share = vectors / gridDim.x + (vectors % gridDim.x != 0);
    const unsigned begin = min(vectors, blockIdx.x * share);
    const unsigned end = min(vectors, begin + share);
    const float4* line = reinterpret_cast<const float4*>(scores + static_cast<Key>(query) * stride);
    const float4* taken_off = reinterpret_cast<const float4*>(penalties == nullptr ? nullptr : penalties + first);
    const float length = lengths[query];
    bool changed = false;

    for (unsigned base = begin; base < end; base += THREADS * DEPTH) {
        float values[4 * DEPTH];
#pragma unroll
        for (unsigned step = 0; step < DEPTH; step++) {
            const unsigned at = base + step * THREADS + threadIdx.x;
            float4 four = make_float4(NAN, NAN, NAN, NAN);
            if (at < end) {
                four = __ldcs(line + at);
                if (taken_off != nullptr) {
                    const float4 off = __ldg(taken_off + at);
                    four.x -= off.x / length;
                    four.y -= off.y / length;
                    four.z -= off.z / length;
                    four.w -= off.w / length;
                }
            }
            values[4 * step] = four.x;
            values[4 * step + 1] = four.y;
            values[4 * step + 2] = four.z;
            values[4 * step + 3] = four.w;
        }
        // A bit for each score that may be among the best. Not a number is never: it compares as false.
        unsigned open = 0;
#pragma unroll
        for (unsigned value = 0; value < 4 * DEPTH; value++) {
            const unsigned column = 4 * (base + value / 4 * THREADS + threadIdx.x) + value % 4;
            if (values[value] >= least && column < columns) {
                open |= 1u << value;
            }
        }
        // Behind this barrier nobody still reads `waiting` of the round before.
        if (__syncthreads_or(open != 0) == 0) {
            continue;
        }
        bool more = true;
        while (more) {
#pragma unroll
            for (unsigned value = 0; value < 4 * DEPTH; value++) {
                if ((open & (1u << value)) != 0) {
                    const unsigned row = first + 4 * (base + value / 4 * THREADS + threadIdx.x) + value % 4;
                    const Key key = key_of(values[value], row);
                    bool wanted = key > threshold;
                    if (wanted && allowed != nullptr) {
                        wanted = (allowed[row / 32] >> (row % 32) & 1) != 0;
                    }
                    // Where there is no room it stays open for the next round.
                    unsigned place = 0;
                    if (wanted) {
                        place = kept + atomicAdd(&waiting, 1u);
                        if (place < room) {
                            keys[place] = key;
                        }
                    }
                    if (!wanted || place < room) {
                        open &= ~(1u << value);
                    }
                }
            }
            // The same for all threads, as is `waiting` behind the barrier: they go on together.
            more = __syncthreads_or(open != 0) != 0;
            if (more || waiting > (room - kept) / 2) {
                take_waiting(keys, kept, room, &waiting);
                threshold = keys[kept - 1];
                least = score_of(threshold);
                changed = true;
            }
        }
    }
    // The last barrier is behind the last key, and no thread adds one after it.
    if (waiting > 0) {
        take_waiting(keys, kept, room, &waiting);
        changed = true;
    }
    if (changed) {
        for (unsigned place = threadIdx.x; place < kept; place += THREADS) {
            own[place] = keys[place];
        }
    }
}
