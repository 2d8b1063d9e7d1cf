// Spreads the blocks of a launch over the CPU's threads.
#include "machine.h"
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace emu {
namespace {

// CPU threads that run the blocks of a launch; one launch at a time.
class Pool {
  public:
    void run(const Launch &launch) {
        size_t blocks = size_t{launch.grid.x} * launch.grid.y * launch.grid.z;
        size_t threads = blocks * launch.block.x * launch.block.y * launch.block.z;
        std::unique_lock turn(whole, std::try_to_lock);
        if (blocks == 1 || threads < 2048 || count() == 1 || !turn) {
            for (size_t b = 0; b < blocks; b++) run_block(launch, blocks, b);
            return;
        }
        start();
        {
            std::lock_guard lock(mutex);
            job = &launch;
            total = blocks;
            next = 0;
            busy = count();
            round++;
        }
        begun.notify_all();
        work();
        std::unique_lock lock(mutex);
        ended.wait(lock, [&] { return busy == 0; });
    }

  private:
    static size_t count() {
        static const size_t threads = std::max(1l, setting("EMU_THREADS", std::thread::hardware_concurrency()));
        return threads;
    }
    static void run_block(const Launch &launch, size_t blocks, size_t b) {
        if (reversed()) b = blocks - 1 - b;
        Dim grid = launch.grid;
        auto part = [](size_t n) { return static_cast<unsigned>(n); };
        emu::run_block(launch, {part(b % grid.x), part(b / grid.x % grid.y), part(b / grid.x / grid.y)});
    }
    void start() {
        for (; started < count() - 1; started++) {
            std::thread([this] {
                for (size_t seen = 0;;) {
                    {
                        std::unique_lock lock(mutex);
                        begun.wait(lock, [&] { return round != seen; });
                        seen = round;
                    }
                    work();
                }
            }).detach();
        }
    }
    void work() {
        for (;;) {
            std::unique_lock lock(mutex);
            size_t from = next, until = std::min(total, from + std::max<size_t>(1, total / (8 * count())));
            next = until;
            if (from == until) {
                if (--busy == 0) ended.notify_one();
                return;
            }
            lock.unlock();
            for (size_t b = from; b < until; b++) run_block(*job, total, b);
        }
    }
    std::mutex whole, mutex;
    std::condition_variable begun, ended;
    const Launch *job = nullptr;
    size_t total = 0, next = 0, busy = 0, round = 0, started = 0;
};

// Never ended: its threads may still be waiting when the process ends.
Pool &pool() {
    static Pool &pool = *new Pool;
    return pool;
}

}  // namespace

void launch(const Launch &launch) {
    auto start = std::chrono::steady_clock::now();
    pool().run(launch);
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    static std::mutex mutex;
    std::lock_guard lock(mutex);
    launch.kernel->launches++;
    launch.kernel->seconds += took.count();
}

}  // namespace emu
