// Runs the kernels on the CPU, for a test: one block after the other, the threads of each as coroutines.

#include "attention.cu"

namespace {

void (*kernel)(Parameters);
const Parameters *parameters;

void run_thread() {
    const unsigned thread = threadIdx.x;
    kernel(*parameters);
    emulation::threads[thread].finished = true;
    _longjmp(emulation::scheduler, 1);
}

// Until it waits or ends.
void go_on(emulation::Thread &thread) {
    if (_setjmp(emulation::scheduler) != 0) {
        return;
    }
    if (thread.started) {
        _longjmp(thread.place, 1);
    }
    thread.started = true;
    setcontext(&thread.context);
}

} // namespace

// Only one at a time.
extern "C" void emulate(void (*of)(Parameters), const Parameters *with, unsigned columns, unsigned rows, unsigned count) {
    using namespace emulation;
    constexpr size_t STACK = 64 << 10;
    kernel = of;
    parameters = with;
    gridDim = {columns, rows};
    blockDim = {count, 1};
    threads.resize(count);
    lanes.resize(count);
    std::vector<char> stacks(count * STACK);
    for (blockIdx.y = 0; blockIdx.y < rows; blockIdx.y++) {
        for (blockIdx.x = 0; blockIdx.x < columns; blockIdx.x++) {
            warps.assign(count / LANES, Barrier());
            block = Barrier();
            for (unsigned i = 0; i < count; i++) {
                threads[i].started = threads[i].finished = false;
                getcontext(&threads[i].context);
                threads[i].context.uc_stack.ss_sp = &stacks[i * STACK];
                threads[i].context.uc_stack.ss_size = STACK;
                makecontext(&threads[i].context, run_thread, 0);
            }
            for (bool all = false; !all;) {
                all = true;
                for (unsigned i = 0; i < count; i++) {
                    if (!threads[i].finished) {
                        all = false;
                        threadIdx.x = i;
                        go_on(threads[i]);
                    }
                }
            }
        }
    }
}
