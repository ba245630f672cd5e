// What `device.cuh` has, for a test on the CPU: the kernels are compiled as C++, and each of a block's threads is a coroutine that
// the others run while it waits. An instruction of a whole warp is what the PTX ISA says of it (ldmatrix; "Matrix Fragments for
// mma.m16n8k16"), computed from what all its lanes have given.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define __device__
#define __global__
// Blocks run one after the other.
#define __shared__ static
#define __launch_bounds__(threads)
#define HAS_BF16

struct uint4 {
    unsigned x, y, z, w;
};

struct Position {
    unsigned x = 0, y = 0;
};
static Position threadIdx, blockIdx, blockDim, gridDim;

static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }

namespace emulation {

constexpr unsigned LANES = 32;

// Threads that wait for one another: a warp or a block.
struct Barrier {
    unsigned arrived = 0, rounds = 0;
};

// What a lane gives to the others of its warp.
struct Lane {
    float value;
    const unsigned short *row;
    unsigned a[4], b[2];
};

// Where a thread goes on. A context is only started: to go on in one asks the system for the mask of signals, which a jump does not.
struct Thread {
    ucontext_t context;
    jmp_buf place;
    bool started, finished;
};

static std::vector<Thread> threads;
static std::vector<Barrier> warps;
static std::vector<Lane> lanes;
static Barrier block;
static jmp_buf scheduler;

static void run_others() {
    const unsigned thread = threadIdx.x;
    if (_setjmp(threads[thread].place) == 0) {
        _longjmp(scheduler, 1);
    }
    threadIdx.x = thread;
}

static void wait(Barrier &barrier, unsigned count) {
    const unsigned round = barrier.rounds;
    barrier.arrived++;
    if (barrier.arrived == count) {
        barrier.arrived = 0;
        barrier.rounds++;
    }
    while (barrier.rounds == round) {
        run_others();
    }
}

static void wait_for_warp() { wait(warps[threadIdx.x / LANES], LANES); }

static Lane &mine() { return lanes[threadIdx.x]; }
static Lane &of(unsigned lane) { return lanes[threadIdx.x / LANES * LANES + lane]; }

// The value of one number among the bits of a pair.
static inline unsigned short part(unsigned pair, unsigned index) {
    return static_cast<unsigned short>(pair >> (16 * index));
}

static void load(unsigned (&matrices)[4], const unsigned short *row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
        std::fprintf(stderr, "ldmatrix: a row that is not aligned to 16 bytes\n");
        std::abort();
    }
    mine().row = row;
    wait_for_warp();
    const unsigned lane = threadIdx.x % LANES;
    for (unsigned m = 0; m < 4; m++) {
        unsigned pair = 0;
        for (unsigned i = 0; i < 2; i++) {
            const unsigned across = lane / 4, along = lane % 4 * 2 + i;
            const unsigned row = transposed ? along : across, column = transposed ? across : along;
            pair |= unsigned(of(8 * m + row).row[column]) << (16 * i);
        }
        matrices[m] = pair;
    }
    wait_for_warp();
}

template <typename Format> void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    std::memcpy(mine().a, a, sizeof a);
    mine().b[0] = b0;
    mine().b[1] = b1;
    wait_for_warp();
    const unsigned lane = threadIdx.x % LANES;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = sums[i];
        for (unsigned k = 0; k < 16; k++) {
            const unsigned left = part(of(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2], k % 2);
            const unsigned right = part(of(column * 4 + k % 8 / 2).b[k / 8], k % 2);
            sum += Format::value(static_cast<unsigned short>(left)) * Format::value(static_cast<unsigned short>(right));
        }
        sums[i] = sum;
    }
    wait_for_warp();
}

static inline float of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

} // namespace emulation

static inline float of_lane(float value, unsigned lane) {
    emulation::mine().value = value;
    emulation::wait_for_warp();
    const float other = emulation::of(lane).value;
    emulation::wait_for_warp();
    return other;
}

static inline void __syncthreads() { emulation::wait(emulation::block, blockDim.x); }

static inline void load_matrices(unsigned (&matrices)[4], const unsigned short *row) {
    emulation::load(matrices, row, false);
}

static inline void load_transposed_matrices(unsigned (&matrices)[4], const unsigned short *row) {
    emulation::load(matrices, row, true);
}

struct Bf16 {
    static float value(unsigned short bits) { return emulation::of_bits(uint32_t(bits) << 16); }

    static unsigned round(float value) {
        const uint32_t bits = emulation::bits_of(value);
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }

    static unsigned pack(float low, float high) { return round(low) | round(high) << 16; }

    static void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
        emulation::multiply<Bf16>(sums, a, b0, b1);
    }
};

struct F16 {
    static float value(unsigned short bits) {
        const float sign = bits >> 15 ? -1.0f : 1.0f;
        const int exponent = bits >> 10 & 31;
        const float mantissa = float(bits & 1023);
        if (exponent == 31) {
            return mantissa == 0 ? sign * INFINITY : NAN;
        }
        return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25));
    }

    static unsigned round(float value) {
        const unsigned sign = emulation::bits_of(value) >> 31 << 15;
        const float size = std::fabs(value);
        if (size == 0) {
            return sign;
        }
        if (std::isnan(size)) {
            return sign | 0x7e00;
        }
        if (size >= 65520) {
            return sign | 0x7c00;
        }
        int exponent = 0;
        std::frexp(size, &exponent);
        // The last of eleven digits counts so much; that of numbers below 2^-14 counts 2^-24.
        const int last = exponent - 11 < -24 ? -24 : exponent - 11;
        const unsigned digits = unsigned(std::nearbyint(std::ldexp(size, -last)));
        // Digits that were rounded up to a twelfth carry into the exponent by themselves.
        return sign | (unsigned(last + 24) * 1024 + digits);
    }

    static unsigned pack(float low, float high) { return round(low) | round(high) << 16; }

    static void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
        emulation::multiply<F16>(sums, a, b0, b1);
    }
};
