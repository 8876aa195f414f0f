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
constexpr int kScoreShift = 16;       // scores are whole multiples of 2^-16
constexpr int kMostScore = 1 << 20;   // and clamped to this many of them
constexpr int kNarrowUnit = 1 << 10;  // up to this unit of the upsampled scores 32 bits hold them and the colours' word
constexpr int kColours = 512;         // that the colour step tells apart: three bits a channel
constexpr int kQuadrants = 4;         // of the picture
constexpr int kColourSets = 8;        // quadrants outside and inside the mask
constexpr int kColourTable = 2 * kColours + 16;  // counts apart by a power of two would wait for each other's stores
constexpr int kLightest = 10;                    // a further component weighs at least this part of the heaviest
constexpr int kMostBoxes = 64;

// As wgap_map, wgap_rule_kind and wgap_status in wgap.h.
enum Map : int { kRecombined = 0, kPositive = 1, kSigned = 2, kNoMap = 3 };
enum RuleKind : int { kAdaptive = 0, kFixed = 1, kForeground = 2, kForegroundColour = 3 };
enum Status : int { kDone = 0, kBadFeatures = 5, kBadLogits = 6, kBadScores = 14 };

// Parts of the work a profiling Block can tell apart.
enum Stage : int {
  kClass,
  kRecombine,
  kColumns,
  kQuantise,
  kEdges,
  kLevel,
  kComponent,
  kHeatmap,
  kScores,
  kColour,
  kStages
};

// What the memory of a block depends on.
struct Shape {
  int channels, height, width;  // feature map; 0 where none is read
  int map_height, map_width;    // where the box is wanted
  int classes;
  int score_height = 0, score_width = 0;  // score map; 0 where none is read
  int colour = 0;                         // whether pictures are read
};

// How the mask is made. A kind has its own parameters; none needs another layout.
struct Rule {
  int kind;    // RuleKind
  int map;     // Map
  int bound;   // kFixed: the mask is u > bound / kOne
  double eta;  // kFixed: the threshold as given, reported back
};

constexpr double kLargestEta = 0.999;  // beyond it the peak itself could round below the threshold

#if !defined(__CUDACC_RTC__)
// How many entries the table of logarithms has for a map.
constexpr u64 logs_for(const Shape& s) { return static_cast<u64>(s.map_height) * s.map_width + kColours + 1; }

// The one place where eta becomes a fixed-point value: rounded to nearest, ties to even.
constexpr Rule fixed_rule(double eta, int map = kRecombined) {
  constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number
  return {kFixed, map, static_cast<int>((eta * kOne + kRounder) - kRounder), eta};
}
constexpr Rule adaptive_rule(int map = kRecombined) { return {kAdaptive, map, 0, 0.0}; }
constexpr bool on_scores(const Rule& rule) { return rule.kind >= kForeground; }
#endif

struct Problem {
  Shape shape;
  Rule rule;
  const float* logits;    // [classes]
  const float* features;  // [channels, height, width], and
  const float* weight;    // [classes, channels], for rules with a map
  const float* scores;    // [score_height, score_width], above 0 on the object, for rules that read them
  const u8* picture;      // [map_height, map_width, 3], and
  const int* logs;        // [map_height * map_width + kColours + 1], see fill_logs; for rules that read pictures
  int class_id;           // the class to localize, or -1: the one of rank class_rank by logit
  int class_rank;         // 0 is the top class; equal logits: lower index first
  int max_boxes = 1;      // records that there is room for
  float* heatmap;         // [map_height, map_width] or null: receives u
  double* edge_means;     // [kLevels + 1] or null: receives V_l in units of u; NaN where the edge set is empty
};

// One class of one image, localized: what wgap_record holds, in its layout.
struct Record {
  u32 struct_size;
  int status;  // Status; the rest is meaningful only if kDone
  int class_id;
  float score;  // softmax probability of class_id
  float logit;
  int level;  // 0..20; -1 for other rules than the adaptive one and a degenerate map
  int degenerate;
  int boxes;  // how many the class has from this record on
  double threshold;
  int box[4];  // x0, y0, x1, y1, half-open, on the map
};

}  // namespace wgap
