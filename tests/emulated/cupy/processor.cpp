// A GPU, thread by thread: warps that meet at shuffles, and a watch on threads that use the same memory.
//
// The threads of a warp are contexts of their own, which stop at a shuffle until all that have not ended are there. On
// real ones a shuffle waits forever for a thread that it names and that waits behind the loop, so that is refused.
// Nothing may depend on the order of blocks and warps: it is the opposite of the host's, unless a test wants that.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ucontext.h>
#include <unordered_map>

struct Index3 {
    unsigned x, y, z;
};
Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace {
constexpr int WARP = 32, STACK = 1 << 18, GRANULE = 2, PAGE = 4096;  // bytes

struct Thread {
    ucontext_t context;
    bool ended;
    double value;  // given to the shuffle at which it waits
    int step;
    const void* where;  // that is in the program
};
Thread warp[WARP];
char stacks[WARP][STACK];
bool present[WARP];  // at the shuffle at which all have met
double given[WARP];  // to it
ucontext_t scheduler;
int current;
void (*body)();

[[noreturn]] void fail(const char* what) {
    fprintf(stderr, "emulated GPU: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
    abort();
}

// Who has used a granule during a launch: threads count from 1, EVERYBODY is more than one of them.
constexpr unsigned NOBODY = 0, EVERYBODY = ~0u;
struct Use {
    unsigned reader, writer, adder;
};
struct Page {
    unsigned launch;
    Use uses[PAGE / GRANULE];
};
std::unordered_map<uintptr_t, Page> pages;
unsigned launches;

Page& page_of(uintptr_t address) {
    static uintptr_t last_number = 0;
    static Page* last = nullptr;
    const uintptr_t number = address / PAGE;
    if (!last || number != last_number) {
        last = &pages[number];
        last_number = number;
    }
    if (last->launch != launches) *last = {launches, {}};
    return *last;
}

void join(unsigned& who, unsigned thread) { who = who == NOBODY || who == thread ? thread : EVERYBODY; }
bool by_another(unsigned who, unsigned thread) { return who != NOBODY && who != thread; }

bool on_a_stack(uintptr_t address) {
    const uintptr_t here = (uintptr_t)__builtin_frame_address(0), first = (uintptr_t)stacks;
    return address - first < sizeof stacks || address - here + (STACK << 3) < STACK << 4;
}

// One of the three ways to use `size` bytes, which two threads may share only if both read or both add.
void use(uintptr_t address, size_t size, unsigned Use::* way) {
    if (on_a_stack(address)) return;
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x + 1;
    for (uintptr_t at = address; at < address + size; at += GRANULE) {
        Use& found = page_of(at).uses[at % PAGE / GRANULE];
        join(found.*way, thread);
        const bool read = way != &Use::reader && by_another(found.reader, thread);
        const bool written = by_another(found.writer, thread);
        const bool added = way != &Use::adder && by_another(found.adder, thread);
        if (read || written || added) fail("two threads use the same memory, and one changes it");
    }
}

void run_thread() {
    body();
    warp[current].ended = true;
}

// Let every thread run to its next shuffle, and check that all have met at the same one. Returns whether any is left.
bool advance(unsigned first) {
    for (current = 0; current < WARP; ++current) {
        threadIdx.x = first + current;
        if (!warp[current].ended) swapcontext(&scheduler, &warp[current].context);
    }
    const Thread* met = nullptr;
    for (int i = 0; i < WARP; ++i) {
        present[i] = !warp[i].ended;
        if (!present[i]) continue;
        if (!met) met = &warp[i];
        if (warp[i].where != met->where || warp[i].step != met->step)
            fail("a warp's threads are at different shuffles");
        given[i] = warp[i].value;
    }
    return met;
}

void run_warp(unsigned first) {
    for (int i = 0; i < WARP; ++i) {
        Thread& thread = warp[i];
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = stacks[i];
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = &scheduler;
        thread.ended = false;
        makecontext(&thread.context, run_thread, 0);
    }
    while (advance(first)) {
    }
}
}  // namespace

double emulated_shuffle(unsigned mask, double value, int step, const void* where) {
    Thread& self = warp[current];
    self.value = value;
    self.step = step;
    self.where = where;
    swapcontext(&self.context, &scheduler);
    const int other = current ^ step;
    if (!(mask >> current & mask >> other & 1)) fail("a shuffle does not name the threads that take part");
    for (int i = 0; i < WARP; ++i) {
        if (mask >> i & 1 && !present[i]) fail("a shuffle names a thread that has ended");
    }
    return given[other];
}

extern "C" bool emulated_forwards = false;

void emulated_addition(const void* target, int size) { use((uintptr_t)target, size, &Use::adder); }

void emulated_grid(unsigned blocks, unsigned threads, bool shuffles, void (*kernel)()) {
    body = kernel;
    ++launches;
    gridDim.x = blocks;
    blockDim.x = threads;
    const unsigned warps = threads / WARP;
    for (unsigned block = 0; block < blocks; ++block) {
        blockIdx.x = emulated_forwards ? block : blocks - 1 - block;
        for (unsigned i = 0; i < warps; ++i) {
            const unsigned first = WARP * (emulated_forwards ? i : warps - 1 - i);
            if (shuffles) {
                run_warp(first);
                continue;
            }
            for (unsigned lane = 0; lane < WARP; ++lane) {
                threadIdx.x = first + lane;
                body();
            }
        }
    }
}

// What compilers call where an address sanitizer is asked for.
extern "C" {
#define ACCESSES(size)                                                                                                 \
    void __asan_load##size(uintptr_t address) { use(address, size, &Use::reader); }                                    \
    void __asan_store##size(uintptr_t address) { use(address, size, &Use::writer); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __asan_loadN(uintptr_t address, size_t size) { use(address, size, &Use::reader); }
void __asan_storeN(uintptr_t address, size_t size) { use(address, size, &Use::writer); }
void __asan_handle_no_return() {}
}
