// What the kernels need of a warp's 32 threads, in the instructions of NVIDIA's cards. `emulation.h` has the same for the CPU.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// The value that another lane of the warp has.
__device__ inline float of_lane(float value, unsigned lane) { return __shfl_sync(0xffffffff, value, lane); }

// Four matrices of 8 by 8 numbers of 16 bits from shared memory: lanes 8 m to 8 m + 7 give the addresses of the rows of matrix m.
// Lane l gets two neighbors of row l / 4 of each, those of the columns 2 (l mod 4) and the next.
__device__ inline void load_matrices(unsigned (&matrices)[4], const unsigned short *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(unsigned(__cvta_generic_to_shared(row)))
                 : "memory");
}

// The same, each matrix transposed.
__device__ inline void load_transposed_matrices(unsigned (&matrices)[4], const unsigned short *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(unsigned(__cvta_generic_to_shared(row)))
                 : "memory");
}

// Formats of 16 bits: how two numbers are packed, the first in the lower half, and how a warp adds the product of 16 by 16 and 16 by
// 8 numbers to its sums.
struct F16 {
    __device__ static inline unsigned pack(float low, float high) {
        const __half2 pair = __floats2half2_rn(low, high);
        return *reinterpret_cast<const unsigned *>(&pair);
    }

    __device__ static inline void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(b0));
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
    }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define HAS_BF16
struct Bf16 {
    __device__ static inline unsigned pack(float low, float high) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<const unsigned *>(&pair);
    }

    __device__ static inline void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};
#endif
