// The kernel with a block of several threads, alone or in groups of lanes that act in step as a GPU's warps do: the same
// record as with one, bit for bit, for any number of them. Under ThreadSanitizer this finds a missing sync() without a
// GPU. With arguments PATH and k the k-th barrier of that path through the kernel is left out, and the program must fail.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "expect.h"
#include "serial_block.h"
#include "wgap/kernel/logs.h"

using namespace wgap;

namespace {

// Spins. A mutex would order a late waker after an early comer to the next barrier, and so hide missing barriers.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
    } else {
      while (round_.load(std::memory_order_acquire) == round) std::this_thread::yield();
    }
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
};

// That a call passed, at most.
std::atomic<int> barriers{0};

// Where the lanes of one group meet.
struct Group {
  explicit Group(int lanes) : barrier(lanes) {}
  Barrier barrier;
  u64 told[8];
};

template <int kLanesOfGroup>
struct ThreadedBlock : CpuLanes {
  static constexpr int kLanes = kLanesOfGroup;
  static constexpr int kTileRows = 5;
  static constexpr int kCopies = 3;
  static constexpr int kColourCopies = 2;
  static constexpr int kSpan = 2;
  static constexpr int kChannels = kLanes == 1 ? 8 : 5;

  Barrier& barrier;
  Group& group;
  int number, threads;
  int omitted, late;
  int passed = 0;

  ThreadedBlock(Barrier& b, Group& g, int n, int of, int without, int last)
      : barrier(b), group(g), number(n), threads(of), omitted(without), late(last) {}

  // Every lane's value to all lanes of the group.
  template <class F>
  void exchange(u64 mine, F take) {
    if (kLanes == 1) return take(mine);
    group.told[number % kLanes] = mine;
    group.barrier.wait();
    for (int lane = 0; lane < kLanes; ++lane) take(group.told[lane]);
    group.barrier.wait();
  }
  template <class T>
  T highest(T value) {
    exchange(static_cast<u64>(value), [&](u64 other) { value = std::max(value, static_cast<T>(other)); });
    return value;
  }
  template <class T>
  T lowest(T value) {
    exchange(static_cast<u64>(value), [&](u64 other) { value = std::min(value, static_cast<T>(other)); });
    return value;
  }
  u64 total(u64 value) {
    u64 sum = 0;
    exchange(value, [&](u64 other) { sum += other; });
    return sum;
  }
  u64 greater(const u8* row, int bound, int n) {
    u64 mine = 0, all = 0;
    for (int i = number % kLanes; i < n; i += kLanes) mine |= static_cast<u64>(row[i] > bound) << i;
    exchange(mine, [&](u64 bits) { all |= bits; });
    return all;
  }
  u64 steps(const u8* row, int stride, int n, u8* low) {
    u64 mine = 0, all = 0;
    for (int i = number % kLanes; i < n; i += kLanes) {
      const u8* const p = row + i;
      low[i] = static_cast<u8>(smaller(smaller(p[-stride], p[stride]), smaller(p[-1], p[1])));
      mine |= static_cast<u64>(low[i] < *p) << i;
    }
    exchange(mine, [&](u64 bits) { all |= bits; });
    return all;
  }
  template <class F>
  void for_bits(const u64* words, int count, F f) {
    int ordinal = 0;
    for (int i = 0; i < count; ++i)
      for (u64 bits = words[i]; bits != 0; bits &= bits - 1, ++ordinal)
        if (ordinal % kLanes == number % kLanes) f(i * 64 + first_bit(bits), ordinal);
  }

  int rank() const { return number; }
  int size() const { return threads; }
  void sync() {
    if (passed++ == omitted) return;
    barrier.wait();
    // One thread comes late to the work before the missing barrier, so that the others are sure to run ahead of it.
    if (passed == omitted && number == late) std::this_thread::sleep_for(std::chrono::milliseconds(2));
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

// All that the problem has room for.
using Records = std::vector<Record>;

Records serial(const Problem& problem) {
  Scratch scratch;
  const Buffer memory = scratch_for<SerialBlock>(problem.shape, &scratch);
  SerialBlock block;
  prepare_block(block, problem.shape, scratch);
  Records records(static_cast<std::size_t>(problem.max_boxes));
  localize_block(block, problem, scratch, records.data());
  return records;
}

// Records of each of three rounds: scratch memory is used again without being cleared.
template <int kLanes>
std::vector<Records> threaded(const Problem& problem, int threads, int omitted) {
  using Block = ThreadedBlock<kLanes>;
  Scratch scratch;
  const Buffer memory = scratch_for<Block>(problem.shape, &scratch);
  Barrier barrier(threads);
  std::deque<Group> groups;
  for (int i = 0; i < threads / kLanes; ++i) groups.emplace_back(kLanes);
  std::vector<Records> records(3, Records(static_cast<std::size_t>(problem.max_boxes)));
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i)
    workers.emplace_back([&, i] {
      Group& group = groups[static_cast<std::size_t>(i / kLanes)];
      Block whole(barrier, group, i, threads, -1, 0);
      prepare_block(whole, problem.shape, scratch);
      for (int round = 0; round < 3; ++round) {
        Block block(barrier, group, i, threads, omitted, round);
        localize_block(block, problem, scratch, records[round].data());
        barriers = std::max(barriers.load(), block.passed);
        barrier.wait();
      }
    });
  for (std::thread& worker : workers) worker.join();
  return records;
}

// Bit for bit.
bool same(const Record& a, const Record& b) {
  if (a.status != b.status) return false;
  if (a.status != kDone) return true;
  return a.struct_size == b.struct_size && a.boxes == b.boxes && a.class_id == b.class_id &&
         std::memcmp(&a.score, &b.score, sizeof a.score) == 0 && a.logit == b.logit && a.level == b.level &&
         a.degenerate == b.degenerate && a.threshold == b.threshold && std::memcmp(a.box, b.box, sizeof a.box) == 0;
}

bool same(const Records& a, const Records& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Record& x, const Record& y) { return same(x, y); });
}

// Ways through the kernel, by the rule that takes them.
const Rule kPaths[] = {adaptive_rule(), {kForegroundColour, kRecombined, 0, 0.0}, {kForeground, kNoMap, 0, 0.0}};

void compare(Random& random, Shape shape, int kind, int omitted, int path = 0) {
  std::vector<float> features = feature_maps(random, shape.channels, shape.height, shape.width, kind);
  const std::vector<float> weight = random_floats(random, static_cast<std::size_t>(shape.classes) * shape.channels);
  const std::vector<float> logits = random_floats(random, shape.classes);
  if (omitted < 0 && random.below(12) == 0) features[features.size() / 2] = NAN;
  const std::size_t pixels = static_cast<std::size_t>(shape.map_height) * shape.map_width;
  std::vector<float> expected_map(pixels), map(pixels);
  std::vector<double> expected_means(kLevels + 1), means(kLevels + 1);
  const int which = random.below(3);
  Problem problem{};
  switch (omitted >= 0 ? 5 : random.below(5)) {
    case 0: problem.rule = fixed_rule(static_cast<double>(random.unit()) / 2, which); break;
    case 1: problem.rule = {kForeground, kNoMap, 0, 0.0}; break;
    case 2: problem.rule = {kForegroundColour, random.below(2) != 0 ? kNoMap : which, 0, 0.0}; break;
    case 5: problem.rule = kPaths[path]; break;
    default: problem.rule = adaptive_rule(which);
  }
  std::vector<float> scores;
  std::vector<u8> picture(pixels * 3);
  std::vector<int> logs(static_cast<std::size_t>(logs_for(shape)));
  if (on_scores(problem.rule)) {
    shape.score_height = 1 + random.below(shape.map_height), shape.score_width = 1 + random.below(shape.map_width);
    if (omitted >= 0) shape.score_height = 5, shape.score_width = 13;
    shape.colour = problem.rule.kind == kForegroundColour;
    scores = random_floats(random, static_cast<std::size_t>(shape.score_height) * shape.score_width);
    for (u8& byte : picture) byte = static_cast<u8>(30 + 60 * random.below(omitted >= 0 ? 3 : 2 + kind));
    fill_logs(logs.data(), 0, logs.size());
    problem.scores = scores.data(), problem.picture = picture.data(), problem.logs = logs.data();
  }
  problem.shape = shape;
  problem.max_boxes = omitted < 0 ? 1 + random.below(4) : path == 0 ? 1 : 3;
  problem.features = features.data();
  problem.logits = logits.data();
  problem.weight = weight.data();
  problem.class_id = -1;
  problem.class_rank = omitted >= 0 ? 1 : random.below(shape.classes);
  const Records bare = serial(problem);
  problem.heatmap = expected_map.data();
  problem.edge_means = expected_means.data();
  const Records expected = serial(problem);
  EXPECT(same(expected, bare));
  problem.heatmap = omitted >= 0 && path == 2 ? nullptr : map.data();  // whose barrier would stand in for another
  problem.edge_means = means.data();
  const auto agree = [&](const std::vector<Records>& rounds) {
    for (const Records& records : rounds) EXPECT(same(expected, records));
    EXPECT(std::memcmp(means.data(), expected_means.data(), means.size() * sizeof(double)) == 0);
    if (problem.heatmap && expected[0].status == kDone)
      EXPECT(std::memcmp(map.data(), expected_map.data(), pixels * sizeof(float)) == 0);
  };
  if (omitted >= 0) return agree(threaded<1>(problem, 3, omitted));
  for (const int threads : {1, 2, 3, 4, 7}) agree(threaded<1>(problem, threads, omitted));
  for (const int groups : {1, 3}) agree(threaded<2>(problem, 2 * groups, omitted));
  for (const int groups : {1, 2}) agree(threaded<4>(problem, 4 * groups, omitted));
}

}  // namespace

int main(int count, char** arguments) {
  Random random{20220527};
  if (count > 2) {
    // Threads that no longer meet wait for ever: that, too, is noticed.
    std::thread([] {
      std::this_thread::sleep_for(std::chrono::seconds(4));
      std::fprintf(stderr, "the threads wait for each other\n");
      std::_Exit(3);
    }).detach();
    // Two classes ranked and three full tiles: every barrier that the source has, at least once.
    const Shape shape{24, 6, 7, 3 * ThreadedBlock<1>::kTileRows, 130, 40};
    for (int i = 0; i < 12; ++i) compare(random, shape, i % 2, std::atoi(arguments[2]), std::atoi(arguments[1]));
    std::printf("barrier %s of path %s is not missed; there are %d\n", arguments[2], arguments[1], barriers.load());
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
