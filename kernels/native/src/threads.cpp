#include "threads.h"

#include <pthread.h>
#include <sys/mman.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

namespace ctloss {
namespace {

class Team {
  public:
    void run(int parts, Work work, void* context) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock() || !grow(parts - 1)) {
            for (int part = 0; part < parts; ++part) work(context, part);
            return;
        }
        {
            std::lock_guard<std::mutex> guard(mutex_);
            work_ = work;
            context_ = context;
            parts_ = parts;
            running_ = parts - 1;
            ++round_;
        }
        begin_.notify_all();
        work(context, 0);
        std::unique_lock<std::mutex> guard(mutex_);
        end_.wait(guard, [this] { return running_ == 0; });
    }

  private:
    bool grow(int helpers) {
        try {
            while (static_cast<int>(helpers_.size()) < helpers) {
                int part = static_cast<int>(helpers_.size()) + 1;
                unsigned long seen = round_;
                helpers_.emplace_back([this, part, seen] { help(part, seen); });
                helpers_.back().detach();
            }
        } catch (...) {
            return false;
        }
        return true;
    }

    void help(int part, unsigned long seen) {
        for (;;) {
            std::unique_lock<std::mutex> guard(mutex_);
            begin_.wait(guard, [&] { return round_ != seen; });
            seen = round_;
            if (part >= parts_) continue;
            Work work = work_;
            void* context = context_;
            guard.unlock();
            work(context, part);
            guard.lock();
            if (--running_ == 0) end_.notify_one();
        }
    }

    std::mutex turn_, mutex_;
    std::condition_variable begin_, end_;
    std::vector<std::thread> helpers_;
    Work work_ = nullptr;
    void* context_ = nullptr;
    int parts_ = 0, running_ = 0;
    unsigned long round_ = 0;
};

std::atomic<Team*> current{nullptr};

// A team is never destroyed, because its threads may outlive static objects. A forked child has none of the threads.
Team& team() {
    Team* found = current.load();
    if (found == nullptr) {
        static const int watched = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
        (void)watched;
        Team* fresh = new Team;
        if (current.compare_exchange_strong(found, fresh)) return *fresh;
        delete fresh;
    }
    return *found;
}

constexpr unsigned long KEPT = 8ul << 20, HUGE_PAGE = 2ul << 20;

struct Memory {
    void* start = nullptr;
    unsigned long size = 0;

    ~Memory() { std::free(start); }

    void* of(unsigned long bytes) {
#ifdef CTLOSS_SANITIZE
        // Afresh and exactly, so that nothing is read that an earlier call left there or that lies beyond.
        constexpr unsigned long unit = 64;
        size = 0;
#else
        if (bytes <= size) return start;
        const unsigned long unit = bytes < HUGE_PAGE ? 4096 : HUGE_PAGE;
#endif
        std::free(start);
        size = (bytes + unit - 1) / unit * unit;
        if (posix_memalign(&start, unit, size) != 0) {
            start = nullptr;
            size = 0;
        }
#ifdef CTLOSS_SANITIZE
        if (start != nullptr) std::memset(start, 0xff, size);
#endif
#ifdef MADV_HUGEPAGE
        // Fresh pages cost as much as the arithmetic on them unless they are large.
        if (start != nullptr && unit == HUGE_PAGE) madvise(start, size, MADV_HUGEPAGE);
#endif
        return start;
    }

    void keep_small() {
        if (size <= KEPT) return;
        std::free(start);
        start = nullptr;
        size = 0;
    }
};

thread_local Memory memory;

}  // namespace

void share(int parts, Work work, void* context) {
    if (parts <= 1) {
        work(context, 0);
    } else {
        team().run(parts, work, context);
    }
}

void* scratch(unsigned long bytes) { return memory.of(bytes); }

void release_scratch() { memory.keep_small(); }

}  // namespace ctloss
