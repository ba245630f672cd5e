// Self-attention over texts that lie one behind another without padding: each text attends to itself alone.
//
// A block computes ROWS rows of one head of one text. It walks over the text's keys and values, some columns at a time, and
// keeps the maximum and the sum of each row's exponentials, by which what was added up so far is scaled again whenever a larger
// score is met ("Online normalizer calculation for softmax", arXiv:1805.02867; "FlashAttention-2", arXiv:2307.08691). No score is
// ever in the memory of the device.

#ifdef __CUDACC__
#include "device.cuh"
#else
#include "emulation.h"
#endif

// What a block computes: rows from `row` on of the text whose first token is `start`. Of its `length` tokens the first `seen` are
// attended to. As in `cuda/mod.rs`.
struct Tile {
    unsigned start, length, seen, row;
};

// As in `cuda/mod.rs`. Addresses are those of the first row's first head; strides are the numbers from one row to the next.
struct Parameters {
    const void *queries, *keys, *values;
    void *output;
    const Tile *tiles;
    // What each token of distance costs, a number for each head of queries; null for nothing.
    const float *slopes;
    unsigned query_stride, key_stride, value_stride;
    // Numbers of a head, and heads of queries that share a head of keys.
    unsigned width, share;
    // How many tokens before and after its own a token attends to.
    unsigned before, after;
    // Of the products of queries and keys.
    float scale;
};

// Rows of a block.
constexpr unsigned ROWS = 64;

constexpr float LOG2_E = 1.44269504088896341f;

// The tokens of a text that a row attends to: [begin, end).
struct Range {
    unsigned begin, end;
};

__device__ inline Range attended(const Parameters &p, const Tile &tile, unsigned row) {
    unsigned begin = row > p.before ? row - p.before : 0;
    unsigned end = p.after < tile.length - row ? row + p.after + 1 : tile.length;
    end = min(end, tile.length);
    // As transformers has it: who would see nothing sees all within reach.
    return {begin, begin < min(end, tile.seen) ? min(end, tile.seen) : end};
}

// What any row of the block attends to. Neither bound of a row's range is below that of the row before.
__device__ inline Range attended_by_any(const Parameters &p, const Tile &tile) {
    unsigned last = min(tile.row + ROWS, tile.length) - 1;
    return {attended(p, tile, tile.row).begin, attended(p, tile, last).end};
}

// Copies `rows` rows of a head to shared memory as COUNT rows of WIDTH numbers, PITCH apart; zeros where there are no more.
template <unsigned COUNT, unsigned WIDTH, unsigned PITCH, typename Number>
__device__ inline void load(Number *to, const Number *from, unsigned stride, unsigned width, unsigned rows) {
    constexpr unsigned WORD = sizeof(uint4) / sizeof(Number);
    // Whole words of 16 bytes where every row begins and ends with one.
    size_t bytes = size_t(from) | stride * sizeof(Number) | width * sizeof(Number);
    bool whole = bytes % sizeof(uint4) == 0;
    for (unsigned i = threadIdx.x; i < COUNT * (WIDTH / WORD); i += blockDim.x) {
        unsigned row = i / (WIDTH / WORD), column = i % (WIDTH / WORD) * WORD;
        union {
            uint4 word;
            Number numbers[WORD];
        } part = {{0, 0, 0, 0}};
        if (row < rows && column < width) {
            const Number *source = from + size_t(row) * stride + column;
            if (whole) {
                part.word = *reinterpret_cast<const uint4 *>(source);
            } else {
#pragma unroll
                for (unsigned j = 0; j < WORD; j++) {
                    part.numbers[j] = column + j < width ? source[j] : Number(0);
                }
            }
        }
        *reinterpret_cast<uint4 *>(to + row * PITCH + column) = part.word;
    }
}

// The running maximum of a row's scores and the sum of their exponentials, to the base 2.
struct Softmax {
    float maximum = -INFINITY, sum = 0;

    // Takes note of the maximum of more scores; gives the factor of all that was added up before.
    __device__ inline float raise(float scores) {
        float raised = fmaxf(maximum, scores);
        float factor = exp2f(maximum - finite(raised));
        maximum = raised;
        sum *= factor;
        return factor;
    }

    __device__ inline float weigh(float score) {
        float weight = exp2f(score - finite(maximum));
        sum += weight;
        return weight;
    }

    // A row that has attended to nothing yet has no maximum, and minus infinity less itself is no number.
    __device__ static inline float finite(float maximum) { return maximum == -INFINITY ? 0 : maximum; }
};

// In 16 bits, on tensor cores: a warp computes 16 rows. Lane l holds of a tile of 16 by 8 sums the columns 2 (l mod 4) and the
// next, of the rows l / 4 and l / 4 + 8 ("Matrix Fragments for mma.m16n8k16" of the PTX ISA).
template <typename Format, unsigned WIDTH>
__device__ inline void attend_in_16_bits(const Parameters &p) {
    constexpr unsigned COLUMNS = WIDTH > 128 ? 32 : 64;
    // Eight rows of a matrix lie in different banks of shared memory.
    constexpr unsigned PITCH = WIDTH + 8;
    alignas(16) __shared__ unsigned short shared[ROWS > 2 * COLUMNS ? ROWS * PITCH : 2 * COLUMNS * PITCH];
    unsigned short *keys = shared, *values = shared + COLUMNS * PITCH;

    const Tile tile = p.tiles[blockIdx.x];
    const unsigned head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned shared_head = head / p.share * p.width;
    const unsigned short *queries = static_cast<const unsigned short *>(p.queries) + head * p.width;
    const unsigned short *all_keys = static_cast<const unsigned short *>(p.keys) + shared_head;
    const unsigned short *all_values = static_cast<const unsigned short *>(p.values) + shared_head;

    // The queries stay in registers.
    const size_t first_query = size_t(tile.start + tile.row) * p.query_stride;
    load<ROWS, WIDTH, PITCH>(shared, queries + first_query, p.query_stride, p.width, tile.length - tile.row);
    __syncthreads();
    unsigned query[WIDTH / 16][4];
#pragma unroll
    for (unsigned k = 0; k < WIDTH / 16; k++) {
        load_matrices(query[k], shared + (warp * 16 + lane % 16) * PITCH + k * 16 + lane / 16 * 8);
    }

    const unsigned rows[2] = {tile.row + warp * 16 + lane / 4, tile.row + warp * 16 + lane / 4 + 8};
    Range range[2];
    for (unsigned r = 0; r < 2; r++) {
        range[r] = rows[r] < tile.length ? attended(p, tile, rows[r]) : Range{0, 0};
    }
    const float scale = p.scale * LOG2_E, slope = p.slopes ? p.slopes[head] * LOG2_E : 0;
    // A warp beyond the end of the text has nothing to do but to copy.
    const bool idle = tile.row + warp * 16 >= tile.length;

    Softmax softmax[2];
    float output[WIDTH / 8][4] = {};
    const Range any = attended_by_any(p, tile);
    for (unsigned first = any.begin; first < any.end; first += COLUMNS) {
        const unsigned count = any.end - first;
        __syncthreads();
        load<COLUMNS, WIDTH, PITCH>(
            keys, all_keys + size_t(tile.start + first) * p.key_stride, p.key_stride, p.width, count);
        load<COLUMNS, WIDTH, PITCH>(
            values, all_values + size_t(tile.start + first) * p.value_stride, p.value_stride, p.width, count);
        __syncthreads();
        if (idle) {
            continue;
        }
        float scores[COLUMNS / 8][4] = {};
#pragma unroll
        for (unsigned n = 0; n < COLUMNS / 16; n++) {
            if (n * 16 < count) {
#pragma unroll
                for (unsigned k = 0; k < WIDTH / 16; k++) {
                    unsigned key[4];
                    load_matrices(key, keys + (n * 16 + lane / 16 * 8 + lane % 8) * PITCH + k * 16 + lane / 8 % 2 * 8);
                    Format::multiply(scores[2 * n], query[k], key[0], key[1]);
                    Format::multiply(scores[2 * n + 1], query[k], key[2], key[3]);
                }
            }
        }
        float maximum[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (unsigned n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const unsigned r = i / 2, column = first + n * 8 + lane % 4 * 2 + i % 2;
                const float distance = fabsf(float(int(rows[r]) - int(column)));
                const bool within = range[r].begin <= column && column < range[r].end;
                scores[n][i] = within ? scores[n][i] * scale - slope * distance : -INFINITY;
                maximum[r] = fmaxf(maximum[r], scores[n][i]);
            }
        }
        float factor[2];
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            // Four lanes have a row.
            maximum[r] = fmaxf(maximum[r], of_lane(maximum[r], lane ^ 1));
            maximum[r] = fmaxf(maximum[r], of_lane(maximum[r], lane ^ 2));
            factor[r] = softmax[r].raise(maximum[r]);
        }
#pragma unroll
        for (unsigned n = 0; n < WIDTH / 8; n++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                output[n][i] *= factor[i / 2];
            }
        }
#pragma unroll
        for (unsigned k = 0; k < COLUMNS / 16; k++) {
            if (k * 16 < count) {
                // The sums of two tiles are, as they lie in the lanes, the left side of the next product.
                unsigned weights[4];
#pragma unroll
                for (unsigned i = 0; i < 4; i++) {
                    const float *score = &scores[2 * k + i / 2][i % 2 * 2];
                    const float left = softmax[i % 2].weigh(score[0]);
                    weights[i] = Format::pack(left, softmax[i % 2].weigh(score[1]));
                }
#pragma unroll
                for (unsigned n = 0; n < WIDTH / 16; n++) {
                    unsigned value[4];
                    load_transposed_matrices(value, values + (k * 16 + lane % 16) * PITCH + n * 16 + lane / 16 * 8);
                    Format::multiply(output[2 * n], weights, value[0], value[1]);
                    Format::multiply(output[2 * n + 1], weights, value[2], value[3]);
                }
            }
        }
    }
    if (idle) {
        return;
    }
    unsigned short *to = static_cast<unsigned short *>(p.output);
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
        float sum = softmax[r].sum;
        sum += of_lane(sum, lane ^ 1);
        sum += of_lane(sum, lane ^ 2);
        if (rows[r] < tile.length) {
            const size_t token = size_t(tile.start + rows[r]) * gridDim.y + head;
#pragma unroll
            for (unsigned n = 0; n < WIDTH / 8; n++) {
                const unsigned column = n * 8 + lane % 4 * 2;
                const unsigned pair = Format::pack(output[n][2 * r] / sum, output[n][2 * r + 1] / sum);
                if (column < p.width) {
                    to[token * p.width + column] = static_cast<unsigned short>(pair);
                }
                if (column + 1 < p.width) {
                    to[token * p.width + column + 1] = static_cast<unsigned short>(pair >> 16);
                }
            }
        }
    }
}

// In 32 bits: WIDTH / 32 threads compute a row, each of them with every so manieth word of four numbers.
template <unsigned WIDTH>
__device__ inline void attend_in_32_bits(const Parameters &p) {
    constexpr unsigned THREADS = WIDTH / 32, COLUMNS = WIDTH > 128 ? 16 : 32, BLOCK = 8;
    alignas(16) __shared__ float keys[COLUMNS * WIDTH];
    alignas(16) __shared__ float values[COLUMNS * WIDTH];

    const Tile tile = p.tiles[blockIdx.x];
    const unsigned head = blockIdx.y, lane = threadIdx.x % 32, part = threadIdx.x % THREADS;
    const unsigned row = tile.row + threadIdx.x / THREADS, shared_head = head / p.share * p.width;
    const float *all_keys = static_cast<const float *>(p.keys) + shared_head;
    const float *all_values = static_cast<const float *>(p.values) + shared_head;
    const Range range = row < tile.length ? attended(p, tile, row) : Range{0, 0};
    const float slope = p.slopes ? p.slopes[head] * LOG2_E : 0;

    float query[32] = {}, output[32] = {};
    if (row < tile.length) {
        const float *from = static_cast<const float *>(p.queries);
        from += size_t(tile.start + row) * p.query_stride + head * p.width;
#pragma unroll
        for (unsigned i = 0; i < 32; i++) {
            const unsigned column = (i / 4 * THREADS + part) * 4 + i % 4;
            query[i] = column < p.width ? from[column] * (p.scale * LOG2_E) : 0;
        }
    }
    Softmax softmax;
    const Range any = attended_by_any(p, tile);
    for (unsigned first = any.begin; first < any.end; first += COLUMNS) {
        const unsigned count = min(any.end - first, COLUMNS);
        __syncthreads();
        load<COLUMNS, WIDTH, WIDTH>(
            keys, all_keys + size_t(tile.start + first) * p.key_stride, p.key_stride, p.width, count);
        load<COLUMNS, WIDTH, WIDTH>(
            values, all_values + size_t(tile.start + first) * p.value_stride, p.value_stride, p.width, count);
        __syncthreads();
        for (unsigned block = 0; block < count; block += BLOCK) {
            float scores[BLOCK], maximum = -INFINITY;
#pragma unroll
            for (unsigned j = 0; j < BLOCK; j++) {
                const float *key = keys + (block + j) * WIDTH + part * 4;
                float score = 0;
#pragma unroll
                for (unsigned i = 0; i < 32; i++) {
                    score += query[i] * key[i / 4 * THREADS * 4 + i % 4];
                }
#pragma unroll
                for (unsigned other = 1; other < THREADS; other *= 2) {
                    score += of_lane(score, lane ^ other);
                }
                const unsigned column = first + block + j;
                const float distance = fabsf(float(int(row) - int(column)));
                const bool within = range.begin <= column && column < range.end;
                scores[j] = within ? score - slope * distance : -INFINITY;
                maximum = fmaxf(maximum, scores[j]);
            }
            const float factor = softmax.raise(maximum);
#pragma unroll
            for (unsigned i = 0; i < 32; i++) {
                output[i] *= factor;
            }
#pragma unroll
            for (unsigned j = 0; j < BLOCK; j++) {
                const float *value = values + (block + j) * WIDTH + part * 4;
                const float weight = softmax.weigh(scores[j]);
#pragma unroll
                for (unsigned i = 0; i < 32; i++) {
                    output[i] += weight * value[i / 4 * THREADS * 4 + i % 4];
                }
            }
        }
    }
    if (row < tile.length) {
        float *to = static_cast<float *>(p.output) + (size_t(tile.start + row) * gridDim.y + head) * p.width;
#pragma unroll
        for (unsigned i = 0; i < 32; i++) {
            const unsigned column = (i / 4 * THREADS + part) * 4 + i % 4;
            if (column < p.width) {
                to[column] = output[i] / softmax.sum;
            }
        }
    }
}

#define KERNELS(WIDTH)                                                                                     \
    extern "C" __global__ void __launch_bounds__(128) attention_f16_##WIDTH(const Parameters p) {          \
        attend_in_16_bits<F16, WIDTH>(p);                                                                  \
    }                                                                                                      \
    extern "C" __global__ void __launch_bounds__(2 * WIDTH) attention_f32_##WIDTH(const Parameters p) {    \
        attend_in_32_bits<WIDTH>(p);                                                                       \
    }
KERNELS(32)
KERNELS(64)
KERNELS(128)
KERNELS(256)

#ifdef HAS_BF16
#define BF16_KERNEL(WIDTH)                                                                                 \
    extern "C" __global__ void __launch_bounds__(128) attention_bf16_##WIDTH(const Parameters p) {         \
        attend_in_16_bits<Bf16, WIDTH>(p);                                                                 \
    }
BF16_KERNEL(32)
BF16_KERNEL(64)
BF16_KERNEL(128)
BF16_KERNEL(256)
#endif
