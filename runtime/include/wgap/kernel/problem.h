// What a kernel is asked and what it answers: plain data, the same for every device and instruction set.
// No standard header: NVRTC has none.
#pragma once

namespace wgap {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

constexpr int kLevels = 20;
constexpr int kLevelShift = 19;
constexpr int kOne = kLevels << kLevelShift;  // fixed-point value of u = 1
constexpr int kFallbackLevel = 4;             // eta = 0.20, CAM's fixed threshold
constexpr int kLargestBits = 252 << 23;       // bits of 2^125: beyond it, interpolation could overflow
constexpr int kInfinityBits = 255 << 23;
constexpr float kFlattest = 1.0f / (1ULL << 60);
constexpr int kMaxPixels = 1 << 20;  // of the map; keeps count and sum of a level within one u64
constexpr int kCountShift = 44;      // level sums: pixel count above, sum of fixed-point values below
constexpr int kLevelSlots = 32;      // a copy of the level sums takes this many places, a power of two
constexpr int kExpLanes = 16;

enum Map : int { kRecombined = 0, kPositive = 1, kSigned = 2 };
enum Outcome : int { kDone = 0, kBadFeatures = 1, kBadLogits = 2 };

// Parts of the work a profiling Block can tell apart.
enum Stage : int { kClass, kRecombine, kWiden, kQuantise, kEdges, kLevel, kComponent, kHeatmap, kStages };

struct Shape {
  int channels, height, width;  // feature map
  int map_height, map_width;    // where the box is wanted
  int classes;
};

struct Problem {
  Shape shape;
  const float* features;  // [channels, height, width]
  const float* logits;    // [classes]
  const float* weight;    // [classes, channels]
  int map;                // Map
  int class_id;           // the class to localize, or -1: the one of rank class_rank by
                          // logit
  int class_rank;         // 0 is the top class; equal logits: lower index first
  int fixed;              // -1: adaptive threshold; else u > fixed / kOne
  double fixed_eta;       // the fixed threshold as given, reported back
  float* heatmap;         // [map_height, map_width] or null: receives u
};

struct Result {
  int outcome;  // Outcome; the rest is meaningful only if kDone
  int class_id;
  float score;  // softmax probability of class_id
  float logit;
  int level;  // 0..20; -1 for a fixed threshold or a degenerate map
  int degenerate;
  double threshold;
  int box[4];                     // x0, y0, x1, y1, half-open, on the map
  double edge_mean[kLevels + 1];  // V_l in units of u; NaN where the edge set is empty
};

}  // namespace wgap
