// The kernel with a block of several threads: the same result as with one, bit for bit, for any number of them. Under
// ThreadSanitizer this finds a missing sync() without a GPU. With an argument k the k-th barrier is left out, and the
// program must fail.
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "expect.h"
#include "serial_block.h"

using namespace wgap;

namespace {

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned long long round = round_;
    if (++waiting_ == threads_) {
      waiting_ = 0;
      ++round_;
      arrived_.notify_all();
    } else {
      arrived_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  int threads_, waiting_ = 0;
  unsigned long long round_ = 0;
};

struct ThreadedBlock : CpuLanes {
  static constexpr int kTileRows = 5;
  static constexpr int kCopies = 3;
  static constexpr int kSpan = 1;

  Barrier& barrier;
  int number, threads;
  int omitted;
  int passed = 0;

  ThreadedBlock(Barrier& b, int n, int of, int without) : barrier(b), number(n), threads(of), omitted(without) {}
  int rank() const { return number; }
  int size() const { return threads; }
  void sync() {
    if (passed++ != omitted) barrier.wait();
  }
  void mark(Stage) {}

  template <class T>
  static void add(T* at, T value) {
    __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
  }
  template <class T>
  static T min(T* at, T value) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value < old && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
  }
  template <class T>
  static void max(T* at, T value) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value > old && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
  template <class T>
  static T load(const T* at) {
    return __atomic_load_n(at, __ATOMIC_RELAXED);
  }
  template <class T>
  static void store(T* at, T value) {
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
  }
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, Free>;

template <class Block>
Buffer scratch_for(const Shape& shape, Scratch* scratch) {
  const std::size_t bytes = (static_cast<std::size_t>(lay_out<Block>(shape, nullptr, scratch)) + 63) / 64 * 64;
  Buffer memory(std::aligned_alloc(64, bytes));
  std::memset(memory.get(), 0x5a, bytes);  // nothing may depend on what was there
  lay_out<Block>(shape, memory.get(), scratch);
  return memory;
}

Result serial(const Problem& problem) {
  Scratch scratch;
  const Buffer memory = scratch_for<SerialBlock>(problem.shape, &scratch);
  SerialBlock block;
  prepare_block(block, problem.shape, scratch);
  Result result{};
  localize_block(block, problem, scratch, &result);
  return result;
}

Result threaded(const Problem& problem, int threads, int omitted) {
  Scratch scratch;
  const Buffer memory = scratch_for<ThreadedBlock>(problem.shape, &scratch);
  Barrier barrier(threads);
  Result result{};
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i)
    workers.emplace_back([&, i] {
      ThreadedBlock whole(barrier, i, threads, -1);
      prepare_block(whole, problem.shape, scratch);
      for (int round = 0; round < 2; ++round) {  // scratch memory is used again without being cleared
        ThreadedBlock block(barrier, i, threads, omitted);
        localize_block(block, problem, scratch, &result);
        barrier.wait();
      }
    });
  for (std::thread& worker : workers) worker.join();
  return result;
}

// Bit for bit, NaN included.
bool same(const Result& a, const Result& b) {
  if (a.outcome != b.outcome) return false;
  if (a.outcome != kDone) return true;
  return a.class_id == b.class_id && std::memcmp(&a.score, &b.score, sizeof a.score) == 0 && a.logit == b.logit &&
         a.level == b.level && a.degenerate == b.degenerate && a.threshold == b.threshold &&
         std::memcmp(a.box, b.box, sizeof a.box) == 0 && std::memcmp(a.edge_mean, b.edge_mean, sizeof a.edge_mean) == 0;
}

void compare(Random& random, const Shape& shape, int kind, int omitted) {
  std::vector<float> features = feature_maps(random, shape.channels, shape.height, shape.width, kind);
  const std::vector<float> weight = random_floats(random, static_cast<std::size_t>(shape.classes) * shape.channels);
  const std::vector<float> logits = random_floats(random, shape.classes);
  if (random.below(12) == 0) features[features.size() / 2] = NAN;
  const std::size_t pixels = static_cast<std::size_t>(shape.map_height) * shape.map_width;
  std::vector<float> expected_map(pixels), map(pixels);
  Problem problem{};
  problem.shape = shape;
  problem.features = features.data();
  problem.logits = logits.data();
  problem.weight = weight.data();
  problem.map = omitted >= 0 ? kRecombined : random.below(3);
  problem.class_id = -1;
  problem.class_rank = omitted >= 0 ? 0 : random.below(shape.classes);
  problem.fixed = omitted >= 0 || random.below(3) > 0 ? -1 : random.below(kOne / 2);
  problem.heatmap = expected_map.data();
  const Result expected = serial(problem);
  for (const int threads : {1, 2, 3, 4, 7}) {
    if (omitted >= 0 && threads != 4) continue;
    problem.heatmap = map.data();
    const Result result = threaded(problem, threads, omitted);
    EXPECT(same(expected, result));
    if (expected.outcome == kDone) EXPECT(std::memcmp(map.data(), expected_map.data(), pixels * sizeof(float)) == 0);
  }
}

}  // namespace

int main(int count, char** arguments) {
  Random random{20220527};
  if (count > 1) {
    // One tile, so that barrier k is the k-th in the source.
    const Shape shape{24, 6, 7, 5, 130, 5};
    for (int i = 0; i < 3; ++i) compare(random, shape, 0, std::atoi(arguments[1]));
    std::printf("barrier %s is not missed\n", arguments[1]);
    return 0;
  }
  compare(random, {3, 1, 1, 1, 1, 1}, 0, -1);
  compare(random, {20, 14, 14, 70, 64, 3}, 0, -1);
  for (int i = 0; i < 40; ++i) {
    const Shape shape{1 + random.below(20), 1 + random.below(9),  1 + random.below(9),
                      1 + random.below(40), 1 + random.below(80), 1 + random.below(40)};
    compare(random, shape, i % 5, -1);
  }
  return 0;
}
