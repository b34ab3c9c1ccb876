// A small pool of threads that outlives the calls: one kernel's items, dealt out in pieces.
//
// Every thread has a share of the items, in the same place in one kernel after another: what a core wrote it finds in
// its own cache, and another core's is far away on processors of several dies. Who is done helps the others. Pieces are
// multiples of `grain` items, because items of one grain may add to the same target. The caller works along; a second
// caller meanwhile, or a process that was forked, simply works alone or starts its own workers.
#include <pthread.h>
#include <sched.h>

typedef void (*kernel_t)(const void* params, long long begin, long long end, long long worker);

struct alignas(64) Share {  // a line of the cache for each
    long long next, end;
};
constexpr long long MOST_SHARES = 256;  // threads beyond begin by helping
constexpr long long PIECES = 3;         // of what is left of a share, one is taken

static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER;  // held by the caller whose job is running
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // guards what follows
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static pthread_cond_t done = PTHREAD_COND_INITIALIZER;
static long long workers = 0;  // threads that exist, numbered from 1; the caller is number 0
static long long job = 0;      // number of the last job
static long long threads = 0;  // those of smaller numbers may still join it
static long long running = 0;  // workers that joined and have not finished

static kernel_t job_kernel;
static const void* job_params;
static long long job_grain, job_shares;
static Share shares[MOST_SHARES];

// Pieces get smaller towards the end of a share, so that a thread that comes late or runs on a slow core does not hold
// up the rest.
static bool take(Share& share, long long* begin, long long* end) {
    *begin = __atomic_load_n(&share.next, __ATOMIC_RELAXED);
    do {
        if (*begin >= share.end) return false;
        const long long left = (share.end - *begin + job_grain - 1) / job_grain;
        *end = *begin + (left + PIECES - 1) / PIECES * job_grain;
        if (*end > share.end) *end = share.end;
    } while (!__atomic_compare_exchange_n(&share.next, begin, *end, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return true;
}

static void work(long long number) {
    long long begin, end;
    for (long long k = 0; k < job_shares; ++k) {
        while (take(shares[(number + k) % job_shares], &begin, &end)) job_kernel(job_params, begin, end, number);
    }
}

static void deal(long long items, long long grains) {
    for (long long k = 0; k < job_shares; ++k) {
        const long long end = (k + 1) * grains / job_shares * job_grain;
        shares[k] = {k * grains / job_shares * job_grain, end < items ? end : items};
    }
}

// Kernels work with subnormal numbers whatever their caller does: some frameworks have their threads take them for
// zeros, and threads inherit that. float16 is widened by way of them.
#if defined(__x86_64__) || defined(__i386__)
typedef unsigned control_t;
constexpr control_t FLUSHES = 0x8040;  // FTZ and DAZ of MXCSR
static control_t get_control() { return __builtin_ia32_stmxcsr(); }
static void set_control(control_t control) { __builtin_ia32_ldmxcsr(control); }
#elif defined(__aarch64__)
typedef unsigned long long control_t;
constexpr control_t FLUSHES = 1 << 24 | 1 << 19;  // FZ and FZ16 of FPCR
static control_t get_control() {
    control_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return control;
}
static void set_control(control_t control) { __asm__ volatile("msr fpcr, %0" : : "r"(control)); }
#else
typedef unsigned control_t;
constexpr control_t FLUSHES = 0;
static control_t get_control() { return 0; }
static void set_control(control_t) {}
#endif

// `job` and `running` are read by threads that spin, too.
static long long get(const long long* number) { return __atomic_load_n(number, __ATOMIC_RELAXED); }
static void set(long long* number, long long value) { __atomic_store_n(number, value, __ATOMIC_RELAXED); }

// Wait a little: an operator's kernels follow one another within microseconds, and waking a thread takes longer.
template <typename Over> static void spin(Over over) {
    for (int i = 0; i < 2000 && !over(); ++i) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }
}

static void leave() {
    pthread_mutex_lock(&lock);
    set(&running, running - 1);
    if (running == 0) pthread_cond_signal(&done);
    pthread_mutex_unlock(&lock);
}

static void* worker(void* number) {
    set_control(get_control() & ~FLUSHES);
    for (long long seen = 0;;) {
        spin([=] { return get(&job) != seen; });
        pthread_mutex_lock(&lock);
        while (job == seen) pthread_cond_wait(&wake, &lock);
        seen = job;
        const bool joins = (long long)number < threads;
        if (joins) set(&running, running + 1);
        pthread_mutex_unlock(&lock);
        if (!joins) continue;
        work((long long)number);
        leave();
    }
    return 0;
}

#ifdef __linux__
constexpr long long FEW = 8;
static pthread_t handles[FEW];  // of the first workers
static int callers_core = -1;   // that they keep away from

// A system may let a woken thread wait behind the caller for milliseconds while another core is idle; it takes a
// virtual machine's sleeping cores for busy ones. Few threads are told where not to run, many would lose little.
static void keep_away() {
    const int core = sched_getcpu();
    cpu_set_t cores;
    if (core == callers_core || sched_getaffinity(0, sizeof cores, &cores) != 0) return;
    CPU_CLR(core, &cores);
    if (CPU_COUNT(&cores) == 0) return;
    for (long long k = 0; k < workers && k < FEW; ++k) pthread_setaffinity_np(handles[k], sizeof cores, &cores);
    callers_core = core;
}

static void remember(pthread_t thread) {
    if (workers < FEW) handles[workers] = thread;
    callers_core = -1;
}
#else
static void keep_away() {}
static void remember(pthread_t) {}
#endif

static void after_fork() {  // the child has no workers, and nobody who would unlock
    static const pthread_mutex_t fresh_mutex = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t fresh_condition = PTHREAD_COND_INITIALIZER;
    busy = lock = fresh_mutex;
    wake = done = fresh_condition;
    workers = threads = running = 0;
}

static void start_workers(long long count) {
    static bool registered = false;
    if (!registered) registered = pthread_atfork(0, 0, after_fork) == 0;
    while (workers < count) {
        pthread_t thread;
        if (pthread_create(&thread, 0, worker, (void*)(workers + 1)) != 0) return;  // the others do the rest
        pthread_detach(thread);
        remember(thread);
        ++workers;
    }
}

// What to run; the kernel's parameters follow in memory.
struct Job {
    kernel_t kernel;
    long long items, grain, threads;
};

static void run(const Job* order) {
    const kernel_t kernel = order->kernel;
    const void* params = order + 1;
    const long long items = order->items, grain = order->grain, grains = (items + grain - 1) / grain;
    const long long wanted = order->threads < grains ? order->threads : grains;
    if (wanted <= 1 || pthread_mutex_trylock(&busy) != 0) {
        kernel(params, 0, items, 0);
        return;
    }
    pthread_mutex_lock(&lock);
    start_workers(wanted - 1);
    job_kernel = kernel;
    job_params = params;
    job_grain = grain;
    job_shares = wanted < MOST_SHARES ? wanted : MOST_SHARES;
    deal(items, grains);
    threads = wanted;
    set(&job, job + 1);
    keep_away();
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
    work(0);
    pthread_mutex_lock(&lock);
    threads = 0;  // whoever has not come by now need not
    pthread_mutex_unlock(&lock);
    spin([] { return get(&running) == 0; });
    pthread_mutex_lock(&lock);
    while (running > 0) pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&busy);
}

extern "C" __attribute__((visibility("default"))) void parallel_run(const Job* order) {
    const control_t before = get_control();
    if (before & FLUSHES) set_control(before & ~FLUSHES);
    run(order);
    if (before & FLUSHES) set_control(before);
}
