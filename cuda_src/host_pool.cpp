// A small pool of threads that outlives the calls: one kernel's items, dealt out in pieces.
//
// The caller works along. Pieces are multiples of `grain` items, because items of one grain may add to the same
// target. A second caller meanwhile, or a process that was forked, simply works alone or starts its own workers.
#include <pthread.h>

typedef void (*kernel_t)(const void* params, long long begin, long long end, long long worker);

static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER;  // held by the caller whose job is running
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // guards what follows
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static pthread_cond_t done = PTHREAD_COND_INITIALIZER;
static long long workers = 0;  // threads that exist
static long long wanted = 0;   // workers that should still join the job
static long long running = 0;  // workers that joined and have not finished
static long long joined = 0;   // numbers given out; the caller is 0

static kernel_t job_kernel;
static const void* job_params;
static long long job_items, job_grain, job_shares, job_next;

// Pieces get smaller towards the end, so that a thread that comes late or runs on a slow core does not hold up the rest.
static bool take(long long* begin, long long* end) {
    *begin = __atomic_load_n(&job_next, __ATOMIC_RELAXED);
    do {
        if (*begin >= job_items) return false;
        const long long left = (job_items - *begin + job_grain - 1) / job_grain;
        *end = *begin + (left + job_shares - 1) / job_shares * job_grain;
    } while (!__atomic_compare_exchange_n(&job_next, begin, *end, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    if (*end > job_items) *end = job_items;
    return true;
}

static void work(long long worker) {
    long long begin, end;
    while (take(&begin, &end)) job_kernel(job_params, begin, end, worker);
}

// Wait a little for a number to become zero, or something else: an operator's kernels follow one another within
// microseconds, and waking a thread takes longer.
static void spin(const long long* number, bool zero) {
    for (int i = 0; i < 2000 && (__atomic_load_n(number, __ATOMIC_RELAXED) == 0) != zero; ++i) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }
}

// `wanted` and `running` are read by threads that spin, too.
static void set(long long* number, long long value) { __atomic_store_n(number, value, __ATOMIC_RELAXED); }

static void* worker(void*) {
    for (;;) {
        spin(&wanted, false);
        pthread_mutex_lock(&lock);
        while (wanted == 0) pthread_cond_wait(&wake, &lock);
        set(&wanted, wanted - 1);
        set(&running, running + 1);
        const long long number = ++joined;
        pthread_mutex_unlock(&lock);
        work(number);
        pthread_mutex_lock(&lock);
        set(&running, running - 1);
        if (running == 0) pthread_cond_signal(&done);
        pthread_mutex_unlock(&lock);
    }
    return 0;
}

static void after_fork() {  // the child has no workers, and nobody who would unlock
    static const pthread_mutex_t fresh_mutex = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t fresh_condition = PTHREAD_COND_INITIALIZER;
    busy = lock = fresh_mutex;
    wake = done = fresh_condition;
    workers = wanted = running = 0;
}

static void start_workers(long long count) {
    static bool registered = false;
    if (!registered) registered = pthread_atfork(0, 0, after_fork) == 0;
    while (workers < count) {
        pthread_t thread;
        if (pthread_create(&thread, 0, worker, 0) != 0) return;  // the caller does the rest
        pthread_detach(thread);
        ++workers;
    }
}

// What to run; the kernel's parameters follow in memory.
struct Job {
    kernel_t kernel;
    long long items, grain, threads;
};

extern "C" __attribute__((visibility("default"))) void parallel_run(const Job* job) {
    const kernel_t kernel = job->kernel;
    const void* params = job + 1;
    const long long items = job->items, grain = job->grain, grains = (items + grain - 1) / grain;
    const long long threads = job->threads < grains ? job->threads : grains;
    if (threads <= 1 || pthread_mutex_trylock(&busy) != 0) {
        kernel(params, 0, items, 0);
        return;
    }
    pthread_mutex_lock(&lock);
    start_workers(threads - 1);
    job_kernel = kernel;
    job_params = params;
    job_items = items;
    job_grain = grain;
    job_shares = 3 * threads;
    job_next = 0;
    joined = 0;
    set(&wanted, threads - 1 < workers ? threads - 1 : workers);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
    work(0);
    pthread_mutex_lock(&lock);
    set(&wanted, 0);  // whoever has not come by now need not
    pthread_mutex_unlock(&lock);
    spin(&running, true);
    pthread_mutex_lock(&lock);
    while (running > 0) pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&busy);
}
