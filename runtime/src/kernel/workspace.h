// Scratch memory and threads for one call at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "targets.h"

namespace wgap {

// How many forks lie between this process and the one that loaded the library.
std::uint64_t forks();

// 64-byte aligned memory that only grows.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory();
  // At least `bytes`, contents undefined; null if there is no more.
  void* at_least(std::size_t bytes) noexcept;

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

class Workspace {
 public:
  // threads >= 1, the caller's included. Throws std::system_error or std::bad_alloc if they cannot be had.
  Workspace(int threads, const Target& target);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Makes scratch memory ready for a shape. False if there is not enough memory.
  bool prepare(const Shape& shape) noexcept;
  // The table of logarithms of the shape that was prepared, if that reads pictures.
  const int* logs() noexcept { return static_cast<const int*>(logs_.at_least(0)); }

  // job(context, i, scratch) for i < count, shared out among the threads; returns when all are done.
  using Job = void (*)(const void* context, long long i, void* scratch);
  void run(long long count, Job job, const void* context) noexcept;

 private:
  void stop() noexcept;
  void work(int thread) noexcept;
  void drain(int thread) noexcept;

  const Target& target_;
  std::unique_ptr<Memory[]> memory_;
  std::unique_ptr<void*[]> scratch_;
  Memory logs_;
  std::size_t logs_count_ = 0;
  Shape shape_{};
  int threads_;

  std::mutex mutex_;
  std::condition_variable begin_, end_;
  unsigned long long round_ = 0;
  int busy_ = 0;
  bool stop_ = false;
  Job job_ = nullptr;
  const void* context_ = nullptr;
  long long count_ = 0;
  std::atomic<long long> next_{0};
  std::vector<std::thread> helpers_;
};

}  // namespace wgap
