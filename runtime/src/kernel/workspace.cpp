#include "workspace.h"

#include <pthread.h>

#include <cstdlib>

#include "arithmetic.h"
#include "wgap/kernel/logs.h"

namespace wgap {

namespace {

std::atomic<std::uint64_t> fork_count{0};
// As the library is loaded: a fork in the midst of a first call's registration would leave its lock held in the child.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { ++fork_count; });

}  // namespace

std::uint64_t forks() { return fork_count.load(std::memory_order_relaxed); }

Memory::~Memory() { std::free(data_); }

void* Memory::at_least(std::size_t bytes) noexcept {
  if (bytes <= size_) return data_;
  std::free(data_);
  const std::size_t rounded = (bytes + 63) / 64 * 64;
  data_ = std::aligned_alloc(64, rounded);
  size_ = data_ != nullptr ? rounded : 0;
  return data_;
}

namespace {

bool same(const Shape& a, const Shape& b) {
  return a.channels == b.channels && a.height == b.height && a.width == b.width && a.map_height == b.map_height &&
         a.map_width == b.map_width && a.classes == b.classes && a.score_height == b.score_height &&
         a.score_width == b.score_width && a.colour == b.colour;
}

}  // namespace

Workspace::Workspace(int threads, const Target& target)
    : target_(target), memory_(new Memory[threads]), scratch_(new void*[threads]), threads_(threads) {
  helpers_.reserve(threads - 1);
  try {
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { work(i); });
  } catch (...) {
    stop();
    throw;
  }
}

Workspace::~Workspace() { stop(); }

void Workspace::stop() noexcept {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  begin_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
  helpers_.clear();
}

bool Workspace::prepare(const Shape& shape) noexcept {
  if (same(shape, shape_)) return true;
  shape_ = Shape{};
  const std::size_t bytes = target_.scratch_bytes(shape);
  for (int i = 0; i < threads_; ++i) {
    scratch_[i] = memory_[i].at_least(bytes);
    if (scratch_[i] == nullptr) return false;
    target_.prepare(shape, scratch_[i]);
  }
  const std::size_t wanted = shape.colour ? static_cast<std::size_t>(logs_for(shape)) : 0;
  if (wanted > logs_count_) {
    logs_count_ = 0;
    int* const logs = static_cast<int*>(logs_.at_least(wanted * sizeof(int)));
    if (logs == nullptr) return false;
    fill_logs(logs, 0, wanted);
    logs_count_ = wanted;
  }
  shape_ = shape;
  return true;
}

void Workspace::run(long long count, Job job, const void* context) noexcept {
  job_ = job;
  context_ = context;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  if (helpers_.empty() || count < 2) return drain(0);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    busy_ = static_cast<int>(helpers_.size());
    ++round_;
  }
  begin_.notify_all();
  drain(0);
  std::unique_lock<std::mutex> lock(mutex_);
  end_.wait(lock, [this] { return busy_ == 0; });
}

void Workspace::drain(int thread) noexcept {
  for (;;) {
    const long long i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= count_) return;
    job_(context_, i, scratch_[thread]);
  }
}

void Workspace::work(int thread) noexcept {
  const DefaultArithmetic arithmetic;  // a new thread has its maker's settings
  unsigned long long seen = 0;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      begin_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
    }
    drain(thread);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--busy_ == 0) end_.notify_one();
  }
}

}  // namespace wgap
