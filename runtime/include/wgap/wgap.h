/* wgap: feature maps and logits to boxes. A C interface to the fused kernel; no dependencies, no exceptions, no output.
 *
 *   wgap_error error = WGAP_ERROR_INIT;
 *   wgap_classifier *classifier = NULL;
 *   wgap_workspace *workspace = NULL;
 *   if (wgap_classifier_create(weight, sizeof weight, 200, 512, &classifier, &error) != WGAP_OK  // [classes][channels]
 *       || wgap_workspace_create(1, NULL, &workspace, &error) != WGAP_OK)  // threads, instruction set (the best)
 *     return fprintf(stderr, "%s\n", error.text), 1;
 *
 *   wgap_input input = WGAP_INPUT_INIT;                                            // one image of 512x14x14
 *   input.images = 1, input.classes = 200, input.channels = 512, input.height = input.width = 14;
 *   input.logits = logits, input.logits_bytes = sizeof logits;
 *   input.features = features, input.features_bytes = sizeof features;
 *   wgap_options options = WGAP_OPTIONS_INIT;                                      // 224x224 map, top-1, adaptive rule
 *   wgap_record record;
 *   wgap_output output = WGAP_OUTPUT_INIT;
 *   output.records = &record, output.records_bytes = sizeof record;
 *   if (wgap_localize(workspace, classifier, &input, &options, &output, &error) != WGAP_OK)
 *     fprintf(stderr, "%s\n", error.text);
 *   else
 *     printf("class %d at x %d..%d, y %d..%d\n", record.class_id, record.box[0], record.box[2], record.box[1],
 *            record.box[3]);
 *
 *   wgap_workspace_destroy(workspace);
 *   wgap_classifier_destroy(classifier);
 *
 * Versions: every struct begins with its size, which the _INIT macros set. A library takes the smaller structs of older
 * headers of its minor version (what they lack has its default) and refuses larger ones with WGAP_STRUCT_TOO_NEW.
 * Errors: every call that can fail returns a status and, where it fails and `error` is not null, writes a sentence with
 * the numbers there; a call that succeeds leaves `error` as it was.
 * Ownership: the caller owns every buffer; the library copies only the classifier. Nothing is read or written beyond the
 * bytes that a struct names. Threads: a classifier is immutable and may be shared; a workspace serves one call at a time
 * and answers WGAP_BUSY to a second one (give each of your threads its own). A workspace allocates when it is created and
 * when it meets a larger shape, never otherwise. Forks: in a forked child a workspace makes its memory and threads anew
 * at its first call there; what it held in the parent stays allocated. Floating point: calls compute with rounding to
 * nearest and subnormal numbers, whatever the caller has set, and leave the caller's settings as they were.
 * Build: link wgap::wgap (CMake), `pkg-config --libs wgap`, or -lwgap. The static library needs -lstdc++ -lpthread -lm.
 */
#ifndef WGAP_WGAP_H
#define WGAP_WGAP_H

#include <stddef.h>
#include <stdint.h>

#if defined(WGAP_STATIC)
#define WGAP_API
#else
#define WGAP_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The one place where the version stands: CMake, the Python package and pkg-config read it here. While the major number
 * is 0, a new minor number is a new interface. */
#define WGAP_VERSION_MAJOR 0
#define WGAP_VERSION_MINOR 2
#define WGAP_VERSION_PATCH 2

#define WGAP_LEVELS 20 /* threshold steps: eta_l = l / WGAP_LEVELS for l = 0..WGAP_LEVELS */
#define WGAP_MOST_THREADS 1024
#define WGAP_MOST_BOXES 64

typedef enum wgap_status {
  WGAP_OK = 0,
  WGAP_INVALID_ARGUMENT = 1,    /* null or misaligned pointer, size below 1, unknown enum, stride below a row */
  WGAP_SHAPE_MISMATCH = 2,      /* classifier and input disagree on channels or classes, or an array of them is empty */
  WGAP_TOO_LARGE = 3,           /* map or feature map of more than 2^20 pixels, or more bytes than can be addressed */
  WGAP_CLASS_OUT_OF_RANGE = 4,  /* a class id outside 0..classes-1, or top_k outside 1..classes */
  WGAP_FEATURES_NOT_FINITE = 5, /* NaN or infinity, or sums beyond 2^125, in the features */
  WGAP_LOGITS_NOT_FINITE = 6,
  WGAP_WEIGHTS_NOT_FINITE = 7,
  WGAP_UNSUPPORTED_TARGET = 8, /* instruction set unknown, or not offered by this machine */
  WGAP_OUT_OF_MEMORY = 9,      /* or out of threads */
  WGAP_BUSY = 10,              /* another thread is using the workspace */
  WGAP_STRUCT_TOO_NEW = 11,    /* a struct is larger than this library knows: it comes from a newer header */
  WGAP_BUFFER_TOO_SMALL = 12,  /* a buffer has fewer bytes than its sizes ask for */
  WGAP_UNKNOWN_RULE = 13,      /* a rule of this name or kind is not known, or its parameter is out of range */
  WGAP_SCORES_NOT_FINITE = 14,
  /* Of wgap/runtime.h: the classes of the Python package's errors. One whose second digit is not 0 is a kind of the one
   * where it is: a WGAP_GATE_ERROR is a WGAP_BUNDLE_ERROR. */
  WGAP_IMAGE_ERROR = 0x100, /* an image is missing, empty, cut short, or not an image */
  WGAP_DATA_ERROR = 0x200,  /* an option or a class is not known or out of range */
  WGAP_RULE_ERROR = 0x210,
  WGAP_BUNDLE_ERROR = 0x300, /* a bundle is incomplete or inconsistent */
  WGAP_MANIFEST_ERROR = 0x310,
  WGAP_HASH_MISMATCH_ERROR = 0x320,
  WGAP_GATE_ERROR = 0x330,    /* a lower-precision file whose gate failed or never ran was asked for */
  WGAP_FEATURE_ERROR = 0x400, /* a network's outputs hold NaN or infinity, or do not fit the bundle */
  WGAP_BACKEND_ERROR = 0x500, /* a network refused its file or failed to run */
  WGAP_ENGINE_ERROR = 0x600,
  WGAP_ENGINE_MISMATCH_ERROR = 0x610,
  WGAP_MISSING_DEPENDENCY_ERROR = 0x700, /* a library that is loaded at run time is not there */
  WGAP_CHECK_FAILED_ERROR = 0x800
} wgap_status;

/* Why a call failed, in words. A longer sentence is cut. */
typedef struct wgap_error {
  uint32_t struct_size;
  int32_t status;  /* wgap_status */
  char text[1016]; /* ends with a zero byte; 248 bytes in the first 0.2 */
} wgap_error;

#define WGAP_ERROR_INIT {(uint32_t)sizeof(wgap_error), WGAP_OK, {0}}

typedef enum wgap_map {
  WGAP_MAP_RECOMBINED = 0, /* sum of |w_c| F_c, divided by its maximum */
  WGAP_MAP_POSITIVE = 1,   /* sum of max(w_c, 0) F_c, divided by its maximum */
  WGAP_MAP_SIGNED = 2,     /* sum of w_c F_c, min-max normalised: plain CAM */
  WGAP_MAP_NONE = 3        /* foreground rules only: features are not read, components rank by their weight alone */
} wgap_map;

typedef enum wgap_rule_kind {
  WGAP_RULE_ADAPTIVE = 0, /* the two-stage rule chooses a level for each map */
  WGAP_RULE_FIXED = 1,    /* parameters[0]: eta in [0, 0.999] */
  /* of wgap_input.scores: what is above 0. With a map, the component with most of the class's map is the first box. */
  WGAP_RULE_FOREGROUND = 2,
  WGAP_RULE_FOREGROUND_COLOUR = 3 /* the same, moved to where the colours of wgap_input.pictures change */
} wgap_rule_kind;

/* How a mask is made: of which map, and where it is cut. A new kind needs no other layout. */
typedef struct wgap_rule {
  uint32_t struct_size;
  int32_t kind;         /* wgap_rule_kind */
  int32_t map;          /* wgap_map */
  int32_t reserved;     /* 0 */
  double parameters[6]; /* their meaning is the kind's; 0 where it has none */
} wgap_rule;

#define WGAP_RULE_INIT {(uint32_t)sizeof(wgap_rule), WGAP_RULE_ADAPTIVE, WGAP_MAP_RECOMBINED, 0, {0, 0, 0, 0, 0, 0}}

typedef struct wgap_options {
  uint32_t struct_size;
  int32_t map_height; /* size of the map the box is wanted on, normally the network's input */
  int32_t map_width;
  int32_t top_k; /* classes per image; ignored where class ids are given */
  wgap_rule rule;
  /* newer than the first 0.2 */
  int32_t
      max_boxes;    /* boxes per class, 1 to WGAP_MOST_BOXES: of the heaviest components of the mask, each of at least a
                        tenth of the heaviest's weight; that is its pixels or, of a foreground rule, its positive scores */
  int32_t reserved; /* 0 */
} wgap_options;

#define WGAP_OPTIONS_INIT {(uint32_t)sizeof(wgap_options), 224, 224, 1, WGAP_RULE_INIT, 1, 0}

typedef struct wgap_input {
  uint32_t struct_size;
  int32_t classes;  /* logits of an image */
  int32_t channels; /* of the feature maps */
  int32_t height;
  int32_t width;
  int32_t reserved; /* 0 */
  int64_t images;
  const float* logits; /* [images][classes] */
  uint64_t logits_bytes;
  const float*
      features; /* [images][channels][height][width], after the last ReLU. A rule whose map is WGAP_MAP_NONE reads
                            none: null, with channels, height and width 0 */
  uint64_t features_bytes;
  const int64_t* class_ids; /* [images], the class to localize in each; or null: the top_k classes by logit */
  uint64_t class_ids_bytes;
  /* newer than the first 0.2 */
  const float* scores; /* [images][scores_height][scores_width], above 0 on the object: for the foreground rules */
  uint64_t scores_bytes;
  int32_t scores_height; /* at most the map's */
  int32_t scores_width;
  const uint8_t* pictures; /* [images][map_height][map_width][3], RGB: for WGAP_RULE_FOREGROUND_COLOUR */
  uint64_t pictures_bytes;
} wgap_input;

#define WGAP_INPUT_INIT \
  {(uint32_t)sizeof(wgap_input), 0, 0, 0, 0, 0, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, 0, 0, NULL, 0}

typedef struct wgap_record {
  uint32_t struct_size; /* bytes of this record that the library has filled in */
  int32_t status;       /* wgap_status of this image; the rest is meaningful only if WGAP_OK */
  int32_t class_id;
  float score; /* softmax probability of class_id */
  float logit;
  int32_t level;      /* chosen threshold level 0..20; -1 for other rules than the adaptive one and a degenerate map */
  int32_t degenerate; /* 1: the mask is empty, the box is the whole map, threshold 0 */
  int32_t boxes;      /* how many boxes this class has from this record on; 0: this one holds none */
  double threshold;   /* eta; 0 for a foreground rule */
  int32_t box[4];     /* x0, y0, x1, y1 in map pixels, half-open */
} wgap_record;

typedef struct wgap_output {
  uint32_t struct_size;
  uint32_t record_size; /* sizeof(wgap_record) */
  wgap_record* records; /* [images][top_k][max_boxes], best class first (ties: lower id); [images][1][max_boxes] with
                           class ids. A class's records differ in box and boxes alone, the best component first */
  uint64_t records_bytes;
  float*
      heatmaps; /* null, or [images][top_k][map_height][map_width]: the normalised maps in [0, 1]; of a foreground rule
                      what of the upsampled scores is above 0, over its maximum */
  uint64_t heatmaps_bytes;
  double*
      edge_means; /* null, or [images][top_k][WGAP_LEVELS + 1]: mean of the map over each level's edge set; NaN where that
                         is empty, for a fixed threshold and for a degenerate map */
  uint64_t edge_means_bytes;
} wgap_output;

#define WGAP_OUTPUT_INIT {(uint32_t)sizeof(wgap_output), (uint32_t)sizeof(wgap_record), NULL, 0, NULL, 0, NULL, 0}

/* 8-bit interleaved pixels. */
typedef struct wgap_image {
  uint32_t struct_size;
  int32_t height;
  int32_t width;
  int32_t channels;  /* 1 to 4 */
  uint8_t* data;     /* the first pixel of the first row; only read of a source */
  int64_t row_bytes; /* from one row to the next, at least width * channels; negative where rows run upwards */
  uint64_t bytes;    /* of memory from the lowest row on, all of it readable (writable) */
} wgap_image;

#define WGAP_IMAGE_INIT {(uint32_t)sizeof(wgap_image), 0, 0, 0, NULL, 0, 0}

typedef struct wgap_classifier wgap_classifier;
typedef struct wgap_workspace wgap_workspace;

/* A few words for each status: static text, never null. */
WGAP_API const char* wgap_status_string(wgap_status status);

/* "major.minor.patch" of the library that is loaded. */
WGAP_API const char* wgap_version(void);

/* Names of the instruction sets this machine runs, slowest first; ends with null. */
WGAP_API const char* const* wgap_targets(void);

/* "adaptive", "fixed:ETA", "foreground" or "foreground+colour", and the map's name ("recombined", "positive", "signed"
 * or, of the last two, "none"; null for the kind's own: recombined, none) to a rule, which begins as WGAP_RULE_INIT. The
 * decimal point is a point in every locale. */
WGAP_API wgap_status wgap_rule_parse(const char* text, const char* map, wgap_rule* rule, wgap_error* error);

/* Copies float32 [classes][channels] weights. WGAP_WEIGHTS_NOT_FINITE if one is NaN or infinite. */
WGAP_API wgap_status wgap_classifier_create(const float* weight, uint64_t weight_bytes, int32_t classes,
                                            int32_t channels, wgap_classifier** classifier, wgap_error* error);
WGAP_API void wgap_classifier_destroy(wgap_classifier* classifier); /* null is fine */

/* 1 to WGAP_MOST_THREADS threads work on one call together, the caller's included. target: "baseline", "avx2",
 * "avx512", or null for the environment's WGAP_TARGET or else the best this machine offers; every target gives the same
 * bits. */
WGAP_API wgap_status wgap_workspace_create(int32_t threads, const char* target, wgap_workspace** workspace,
                                           wgap_error* error);
WGAP_API void wgap_workspace_destroy(wgap_workspace* workspace);             /* null is fine */
WGAP_API const char* wgap_workspace_target(const wgap_workspace* workspace); /* "" for null */

/* Boxes of a batch. Returns WGAP_OK, an error of the whole call (nothing was written), or, where single images hold NaN
 * or infinity, the first of their statuses: every record tells its own, and the good ones are complete. */
WGAP_API wgap_status wgap_localize(wgap_workspace* workspace, const wgap_classifier* classifier,
                                   const wgap_input* input, const wgap_options* options, const wgap_output* output,
                                   wgap_error* error);

/* Bilinear resize (half-pixel centres, edges clamped, no antialiasing) between images of as many channels. The same
 * bytes on every machine. Source and destination must not overlap. */
WGAP_API wgap_status wgap_resize(const wgap_image* source, const wgap_image* destination, wgap_error* error);

#ifdef __cplusplus
}
#endif

#endif
