/* wgap: feature maps and logits to boxes. A C interface to the fused kernel; no dependencies, no exceptions, no output.
 *
 *   wgap_classifier *classifier = NULL;
 *   wgap_workspace *workspace = NULL;
 *   wgap_classifier_create(weight, classes, channels, &classifier);            // float32 [classes][channels], copied
 *   wgap_workspace_create(1, NULL, &workspace);                                 // threads, instruction set (best)
 *
 *   wgap_input input = {features, logits, 1, 512, 14, 14};                      // one image of 512x14x14
 *   wgap_options options = WGAP_OPTIONS_INIT;                                   // 224x224 map, top-1, adaptive
 *   wgap_record record;
 *   wgap_status status = wgap_localize(workspace, &input, classifier, &options, NULL, &record, NULL);
 *   if (status != WGAP_OK) fprintf(stderr, "%s\n", wgap_status_string(status));
 *   else printf("class %d at x %d..%d, y %d..%d\n", record.class_id, record.box[0], record.box[2], record.box[1],
 *               record.box[3]);
 *
 *   wgap_workspace_destroy(workspace);
 *   wgap_classifier_destroy(classifier);
 *
 * Ownership: the caller owns every buffer; the library copies only the classifier. Threads: a classifier is immutable
 * and may be shared; a workspace serves one call at a time (give each of your threads its own). A workspace allocates
 * when it is created and when it meets a larger shape, never otherwise. Build: link wgap::wgap (CMake) or -lwgap.
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

#define WGAP_VERSION_MAJOR 0
#define WGAP_VERSION_MINOR 1
#define WGAP_VERSION_PATCH 0
#define WGAP_LEVELS 20 /* threshold steps: eta_l = l / WGAP_LEVELS for l = 0..WGAP_LEVELS */

typedef enum wgap_status {
  WGAP_OK = 0,
  WGAP_INVALID_ARGUMENT = 1,    /* null pointer, size below 1, misaligned buffer, unknown enum or struct version */
  WGAP_SHAPE_MISMATCH = 2,      /* classifier and input disagree on channels */
  WGAP_TOO_LARGE = 3,           /* map or feature map of more than 2^20 pixels, or more bytes than can be addressed */
  WGAP_CLASS_OUT_OF_RANGE = 4,  /* a class id outside 0..classes-1, or top_k outside 1..classes */
  WGAP_FEATURES_NOT_FINITE = 5, /* NaN or infinity, or sums beyond 2^125, in the features */
  WGAP_LOGITS_NOT_FINITE = 6,
  WGAP_WEIGHTS_NOT_FINITE = 7,
  WGAP_UNSUPPORTED_TARGET = 8, /* instruction set unknown, or not offered by this machine */
  WGAP_OUT_OF_MEMORY = 9
} wgap_status;

typedef enum wgap_map {
  WGAP_MAP_RECOMBINED = 0, /* sum of |w_c| F_c, divided by its maximum */
  WGAP_MAP_POSITIVE = 1,   /* sum of max(w_c, 0) F_c, divided by its maximum */
  WGAP_MAP_SIGNED = 2      /* sum of w_c F_c, min-max normalised: plain CAM */
} wgap_map;

#define WGAP_MOST_THREADS 1024
#define WGAP_ADAPTIVE (-1.0)

typedef struct wgap_options {
  uint32_t struct_size; /* sizeof(wgap_options): tells which version of this struct the caller knows */
  int32_t map_height;   /* size of the map the box is wanted on, normally the network's input */
  int32_t map_width;
  int32_t map;      /* wgap_map */
  int32_t top_k;    /* records per image; ignored where class ids are given */
  int32_t reserved; /* 0 */
  double threshold; /* WGAP_ADAPTIVE, or a fixed eta in [0, 0.999] */
} wgap_options;

#define WGAP_OPTIONS_INIT {(uint32_t)sizeof(wgap_options), 224, 224, WGAP_MAP_RECOMBINED, 1, 0, WGAP_ADAPTIVE}

typedef struct wgap_input {
  const float* features; /* [images][channels][height][width], after the last ReLU */
  const float* logits;   /* [images][classes] */
  int64_t images;
  int32_t channels;
  int32_t height;
  int32_t width;
} wgap_input;

typedef struct wgap_record {
  int32_t status; /* wgap_status of this image; the rest is meaningful only if WGAP_OK */
  int32_t class_id;
  float score; /* softmax probability of class_id */
  float logit;
  int32_t level;                     /* chosen threshold level 0..20; -1 for a fixed threshold or a degenerate map */
  int32_t degenerate;                /* 1: the map is flat, the box is the whole map, threshold 0 */
  double threshold;                  /* eta */
  int32_t box[4];                    /* x0, y0, x1, y1 in map pixels, half-open */
  double edge_mean[WGAP_LEVELS + 1]; /* mean of the map over each level's edge set; NaN where empty or not searched */
} wgap_record;

typedef struct wgap_classifier wgap_classifier;
typedef struct wgap_workspace wgap_workspace;

/* Static text, never null. */
WGAP_API const char* wgap_status_string(wgap_status status);

/* "major.minor.patch" of the library that is loaded. */
WGAP_API const char* wgap_version(void);

/* Names of the instruction sets this machine runs, slowest first; ends with null. */
WGAP_API const char* const* wgap_targets(void);

/* Copies float32 [classes][channels] weights. WGAP_WEIGHTS_NOT_FINITE if one is NaN or infinite. */
WGAP_API wgap_status wgap_classifier_create(const float* weight, int32_t classes, int32_t channels,
                                            wgap_classifier** classifier);
WGAP_API void wgap_classifier_destroy(wgap_classifier* classifier); /* null is fine */

/* 1 to WGAP_MOST_THREADS threads work on one call together, the caller's included. target: "baseline", "avx2",
 * "avx512", or null for the environment's WGAP_TARGET or else the best this machine offers; every target gives the same
 * bits. */
WGAP_API wgap_status wgap_workspace_create(int32_t threads, const char* target, wgap_workspace** workspace);
WGAP_API void wgap_workspace_destroy(wgap_workspace* workspace); /* null is fine */
WGAP_API const char* wgap_workspace_target(const wgap_workspace* workspace);

/* Boxes of a batch. classes: one class id per image, or null for the top_k classes by logit (ties: lower id first).
 * records: [images][top_k] ([images][1] with class ids). heatmaps: null, or float32 of the records' shape times
 * [map_height][map_width], which receives the normalised maps in [0, 1].
 * Returns WGAP_OK, an error of the whole call (nothing was written), or the first record's error that is not WGAP_OK
 * (every record tells its own; the good ones are complete). */
WGAP_API wgap_status wgap_localize(wgap_workspace* workspace, const wgap_input* input,
                                   const wgap_classifier* classifier, const wgap_options* options,
                                   const int64_t* classes, wgap_record* records, float* heatmaps);

/* Bilinear resize (half-pixel centres, edges clamped, no antialiasing) of 8-bit interleaved images with 1 to 4
 * channels. Row strides are in bytes. The same bytes on every machine. Source and destination must not overlap. */
WGAP_API wgap_status wgap_resize(const uint8_t* source, int32_t source_height, int32_t source_width,
                                 ptrdiff_t source_row_bytes, uint8_t* destination, int32_t height, int32_t width,
                                 ptrdiff_t row_bytes, int32_t channels);

#ifdef __cplusplus
}
#endif

#endif
