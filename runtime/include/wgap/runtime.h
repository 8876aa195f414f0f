/* wgap's runtime: a bundle and a picture in, boxes out, the same as the Python package's. C; wgap.hpp is C++ over it.
 *
 *   wgap_error error = WGAP_ERROR_INIT;
 *   wgap_localizer *localizer = NULL;
 *   wgap_results *results = NULL;
 *   if (wgap_localizer_open("bundle", NULL, &localizer, &error) != WGAP_OK) return fprintf(stderr, "%s\n", error.text), 1;
 *
 *   wgap_picture picture = WGAP_PICTURE_INIT;
 *   picture.path = "bird.jpg";
 *   if (wgap_localizer_run(localizer, &picture, 1, NULL, &results, &error) != WGAP_OK)
 *     fprintf(stderr, "%s\n", error.text);
 *   else
 *     puts(wgap_results_json(results, 0));
 *
 *   wgap_results_destroy(results);
 *   wgap_localizer_close(localizer);
 *
 * Structs, errors and versions are as wgap.h says. Errors carry the classes of the Python package's errors, whose names
 * wgap_status_string gives. Threads: a bundle and a localizer may be used by several threads at once; what is returned
 * by one call belongs to its caller. Forks: open a localizer in the process that uses it; ONNX Runtime's threads do not
 * survive a fork. Boxes are half-open (x0, y0, x1, y1) in pixels of the original picture, its EXIF orientation applied.
 * Texts are UTF-8; a pointer to one lives as long as the handle that it came from.
 */
#ifndef WGAP_RUNTIME_H
#define WGAP_RUNTIME_H

#include <wgap/wgap.h>

#if defined(WGAP_STATIC)
#define WGAP_RUNTIME_API
#else
#define WGAP_RUNTIME_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* -- Bundles -- */

typedef struct wgap_bundle wgap_bundle;

typedef struct wgap_bundle_info {
  uint32_t struct_size;
  int32_t schema;       /* of wgap.json: 1 or 2 */
  int32_t input_height; /* of the network's input, and of the map */
  int32_t input_width;
  int32_t classes;
  int32_t channels; /* of the feature maps */
  int32_t feature_height;
  int32_t feature_width;
  int32_t foreground_height; /* of the score map; 0 where the bundle has none */
  int32_t foreground_width;
  wgap_rule rule;
} wgap_bundle_info;

#define WGAP_BUNDLE_INFO_INIT {(uint32_t)sizeof(wgap_bundle_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, WGAP_RULE_INIT}

/* Open a bundle's folder; with verify != 0, compare every file that it lists with its size and sha256. */
WGAP_RUNTIME_API wgap_status wgap_bundle_open(const char* path, int32_t verify, wgap_bundle** bundle,
                                              wgap_error* error);
WGAP_RUNTIME_API void wgap_bundle_close(wgap_bundle* bundle); /* null is fine */
WGAP_RUNTIME_API wgap_status wgap_bundle_describe(const wgap_bundle* bundle, wgap_bundle_info* info, wgap_error* error);
WGAP_RUNTIME_API const char* wgap_bundle_class_name(const wgap_bundle* bundle,
                                                    int32_t class_id); /* null out of range */

/* What is to run one of a bundle's engines. */
typedef struct wgap_engine_host {
  uint32_t struct_size;
  int32_t batch;                  /* images per call; 0: any that the engine's profile has */
  const char* flavor;             /* "tensorrt" or "tensorrt_rtx" */
  const char* version;            /* of that library */
  const char* compute_capability; /* of the GPU, such as "8.6"; null where it is unknown */
  const char* platform;           /* such as "linux x86_64"; null for this one */
} wgap_engine_host;

#define WGAP_ENGINE_HOST_INIT {(uint32_t)sizeof(wgap_engine_host), 0, NULL, NULL, NULL, NULL}

/* For a program that runs TensorRT by itself: the bundle's engine that fits the host best, checked before a byte of it is
 * deserialised. precision: null for "fp32". rule: null for the bundle's own. plan: its bytes, the very ones whose hash was
 * compared, for wgap_free. path: its path within the bundle, for wgap_free; or null. WGAP_ENGINE_MISMATCH_ERROR comes with
 * a table of everything that differs. */
WGAP_RUNTIME_API wgap_status wgap_bundle_engine(const wgap_bundle* bundle, const wgap_engine_host* host,
                                                const char* precision, const wgap_rule* rule, int32_t ungated,
                                                void** plan, uint64_t* plan_bytes, char** path, wgap_error* error);
WGAP_RUNTIME_API void wgap_free(void* memory); /* null is fine */

/* -- Networks: what runs the bundle's graph -- */

typedef enum wgap_type { WGAP_UINT8 = 0, WGAP_FLOAT32 = 1 } wgap_type;

/* One input or output of a bundle's graph. */
typedef struct wgap_tensor {
  uint32_t struct_size;
  int32_t type; /* wgap_type */
  const char* name;
  int32_t rank;
  int32_t reserved;
  int64_t extents[4]; /* the first is the batch: -1, free */
} wgap_tensor;

/* What a network gives for a batch, float32 in host memory: [images] rows of what the bundle's signature says. Outputs
 * that were not asked for may stay null. */
typedef struct wgap_outputs {
  uint32_t struct_size;
  int32_t reserved;
  const float* logits;
  uint64_t logits_bytes;
  const float* features;
  uint64_t features_bytes;
  const float* foreground;
  uint64_t foreground_bytes;
  void* lease; /* the network's own, handed back to release */
} wgap_outputs;

#define WGAP_OUTPUTS_INIT {(uint32_t)sizeof(wgap_outputs), 0, NULL, 0, NULL, 0, NULL, 0, NULL}

enum { WGAP_LOGITS = 1, WGAP_FEATURES = 2, WGAP_FOREGROUND = 4 }; /* bits of the outputs that are wanted */

/* A batch whose boxes the network is asked for, where it has the kernel behind it, on a GPU. */
typedef struct wgap_locate_request {
  uint32_t struct_size;
  int32_t on_device;        /* 1: images lie in the memory of the network's GPU */
  const uint8_t* images;    /* as those of run */
  int64_t count;            /* at most largest */
  void* stream;             /* of images on a device: a CUstream or cudaStream_t, behind whose work they are ready */
  const wgap_rule* rule;    /* one of the bundle's rules, judged */
  const int64_t* class_ids; /* [count], judged; or null: the top_k classes by logit */
  int32_t top_k;
  int32_t max_boxes;
  const wgap_outputs* outputs; /* null; or outputs in host memory, in place of running the network */
  wgap_record* records;        /* [count][class_ids ? 1 : top_k][max_boxes], as wgap_localize writes them */
  float* heatmaps;             /* [count][class_ids ? 1 : top_k][input_height][input_width], or null */
} wgap_locate_request;

/* A network: one of wgap's modules, or any engine of your own. run may be called by several threads at once. name and
 * version are read for as long as the localizer is open. */
typedef struct wgap_network {
  uint32_t struct_size;
  int32_t largest; /* images that run takes at most; 0 for any number */
  void* context;   /* yours */
  /* images: uint8 [count][input_height][input_width][3], RGB. wanted: WGAP_LOGITS and such. What is written into
   * outputs is read until release is called with it, once. Return WGAP_OK, or a status and a sentence in error. */
  wgap_status (*run)(void* context, const uint8_t* images, int64_t count, uint32_t wanted, wgap_outputs* outputs,
                     wgap_error* error);
  void (*release)(void* context,
                  wgap_outputs* outputs); /* after a run that succeeded, not after one that failed; or null */
  void (*destroy)(void* context);         /* with the localizer; or null */
  const char* name;
  const char* version; /* of the library underneath; or null */
  /* Or null: the localizer calls run, and its own kernel. Return WGAP_OK where records were written, whose statuses say
   * which images have none. */
  wgap_status (*locate)(void* context, const wgap_locate_request* request, wgap_error* error);
} wgap_network;

#define WGAP_NETWORK_INIT {(uint32_t)sizeof(wgap_network), 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL}

/* What a module is asked to open. It lives for the length of that call. */
typedef struct wgap_network_request {
  uint32_t struct_size;
  int32_t tensor_count;
  const char* path; /* of the file, for messages */
  const void* content;
  uint64_t content_bytes; /* of the file: the very bytes that were hashed */
  const wgap_tensor* tensors;
  const char* precision;
  const char* library;        /* the option of that name, or null */
  const char* device;         /* a GPU's ordinal or UUID; or null for the first */
  int32_t threads;            /* 0: the library's choice */
  int32_t slots;              /* calls on a GPU at the same time; 0: the module's choice */
  int32_t largest;            /* images per call at most: an engine's largest batch, else the localizer's batch_size */
  int32_t version_compatible; /* of an engine: 1: it was built to run in later versions */
  int32_t classes;
  int32_t channels;
  const float* weight;     /* [classes][channels], of the classifier behind the features */
  int64_t memory_limit;    /* bytes that ONNX Runtime may hold on the GPU; 0: the module's choice */
  const char* source_path; /* of an engine without weights: the ONNX file it was built from; else null */
  const void* source;      /* the very bytes that were hashed */
  uint64_t source_bytes;
  const char* hint; /* of OpenVINO: "throughput"; or null or "latency" */
  int32_t streams;  /* of OpenVINO: forward passes side by side; 0: as the hint has it */
} wgap_network_request;

/* What runs engines here. A module of a library that has engines exports wgap_network_host, which fills it in. */
typedef struct wgap_network_host_info {
  char version[64];            /* of the library */
  char compute_capability[16]; /* of the GPU, such as "8.6" */
} wgap_network_host_info;

typedef wgap_status wgap_network_hoster(const char* library, const char* device, wgap_network_host_info* host,
                                        wgap_error* error);

/* Every module exports it as wgap_network_open. */
typedef wgap_status wgap_network_opener(const wgap_network_request* request, wgap_network* network, wgap_error* error);

/* -- Localizers -- */

typedef struct wgap_localizer wgap_localizer;

typedef struct wgap_localizer_options {
  uint32_t struct_size;
  int32_t top_k;      /* classes per picture where no class is asked for */
  int32_t max_boxes;  /* boxes per class, 1 to WGAP_MOST_BOXES */
  int32_t batch_size; /* pictures per forward pass, 1 to 4096 */
  int32_t threads;    /* of network and kernel; 0: every core that the process may use, and one for the kernel */
  int32_t ungated;    /* 1: run a lower-precision file that no gate has passed under this rule */
  int32_t trusted;    /* 1: do not compare every file of the bundle with its hash; those that are read always are */
  int32_t slots;      /* of backends on GPUs: calls on the GPU at the same time; 0 for 4 */
  const char*
      backend; /* "onnxruntime" (null), "onnxruntime_cuda", "openvino", "tensorrt"; "auto": what runs best here */
  const char* precision; /* null or "fp32"; "int8", "fp16", "bf16" once calibrated */
  const char* rule;      /* wgap_rule_parse's text; null for the bundle's own */
  const char* map;       /* likewise */
  const char* library;   /* file of the backend's library; null: searched, as docs/embedding-cpp.md says */
  const char* device; /* of backends on GPUs: an ordinal, or a UUID as `nvidia-smi -L` prints it; null for the first */
  const wgap_network* network; /* of your own, in place of the backend; owned by the localizer where opening succeeds */
  int64_t memory_limit;        /* of onnxruntime_cuda: bytes that it may hold on the GPU; 0 for 4 GiB */
  const char* hint;            /* of openvino: "throughput"; null or "latency" */
  int32_t streams; /* of openvino: forward passes side by side, for calls from several threads; 0: as the hint has it */
  int32_t reserved;
} wgap_localizer_options;

#define WGAP_LOCALIZER_OPTIONS_INIT          \
  {(uint32_t)sizeof(wgap_localizer_options), \
   1,                                        \
   1,                                        \
   1,                                        \
   0,                                        \
   0,                                        \
   0,                                        \
   0,                                        \
   NULL,                                     \
   NULL,                                     \
   NULL,                                     \
   NULL,                                     \
   NULL,                                     \
   NULL,                                     \
   NULL,                                     \
   0,                                        \
   NULL,                                     \
   0,                                        \
   0}

/* options: null for the defaults. */
WGAP_RUNTIME_API wgap_status wgap_localizer_open(const char* path, const wgap_localizer_options* options,
                                                 wgap_localizer** localizer, wgap_error* error);
/* Null is fine. No call may be under way; results stay valid. */
WGAP_RUNTIME_API void wgap_localizer_close(wgap_localizer* localizer);
WGAP_RUNTIME_API const wgap_bundle* wgap_localizer_bundle(const wgap_localizer* localizer); /* the localizer's */
WGAP_RUNTIME_API const char* wgap_localizer_backend(const wgap_localizer* localizer); /* such as "onnxruntime 1.32.0" */

/* The rule that it runs under. */
WGAP_RUNTIME_API wgap_status wgap_localizer_rule(const wgap_localizer* localizer, wgap_rule* rule, wgap_error* error);

/* A picture: the first of path, encoded and pixels that is not null. */
typedef struct wgap_picture {
  uint32_t struct_size;
  int32_t class_id;    /* the class to localize, in all pictures of a call or in none; -1: the top_k by logit */
  const char* path;    /* of a JPEG or PNG file */
  const void* encoded; /* the bytes of one */
  uint64_t encoded_bytes;
  const wgap_image* pixels; /* 3 channels, RGB, of any size */
} wgap_picture;

#define WGAP_PICTURE_INIT {(uint32_t)sizeof(wgap_picture), -1, NULL, NULL, 0, NULL}

typedef struct wgap_run_options {
  uint32_t struct_size;
  int32_t heatmaps; /* 1: also return the normalised map of each class */
} wgap_run_options;

#define WGAP_RUN_OPTIONS_INIT {(uint32_t)sizeof(wgap_run_options), 0}

typedef struct wgap_box {
  double x0, y0, x1, y1;
} wgap_box;

/* One class of one picture. */
typedef struct wgap_found {
  uint32_t struct_size;
  int32_t class_id;
  const char* class_name;
  float score; /* softmax probability of the class */
  int32_t level;
  double threshold;
  int32_t degenerate; /* 1: the mask is empty, the box is the whole picture */
  int32_t box_count;
  const wgap_box* boxes; /* the best component's first */
  const float* heatmap;  /* [heatmap_height][heatmap_width] in [0, 1], where it was asked for; or null */
  int32_t heatmap_height;
  int32_t heatmap_width;
} wgap_found;

typedef struct wgap_results wgap_results;

/* Localizes pictures, batch_size in a forward pass. A picture that cannot be localized has a status of its own among the
 * results, and the call succeeds; it fails where nothing can be done at all. options: null for the defaults. */
WGAP_RUNTIME_API wgap_status wgap_localizer_run(wgap_localizer* localizer, const wgap_picture* pictures, int64_t count,
                                                const wgap_run_options* options, wgap_results** results,
                                                wgap_error* error);
WGAP_RUNTIME_API void wgap_results_destroy(wgap_results* results); /* null is fine */
WGAP_RUNTIME_API int64_t wgap_results_count(const wgap_results* results);
/* Of one picture: WGAP_OK, or why it has no boxes; WGAP_INVALID_ARGUMENT out of range. */
WGAP_RUNTIME_API wgap_status wgap_results_status(const wgap_results* results, int64_t picture);
WGAP_RUNTIME_API const char* wgap_results_message(const wgap_results* results, int64_t picture); /* "" where it has */
WGAP_RUNTIME_API int32_t wgap_results_classes(const wgap_results* results, int64_t picture);
WGAP_RUNTIME_API const wgap_found* wgap_results_found(const wgap_results* results, int64_t picture, int32_t rank);
/* The line that `wgap localize --json` prints for this picture. */
WGAP_RUNTIME_API const char* wgap_results_json(const wgap_results* results, int64_t picture);

/* Pictures that lie in the memory of the localizer's GPU, at the network's input size. */
typedef struct wgap_device_pictures {
  uint32_t struct_size;
  int32_t reserved;
  const void* images; /* uint8 [count][input_height][input_width][3], RGB */
  int64_t count;
  void*
      stream; /* CUstream or cudaStream_t: the work is queued behind what it holds, and waited for; null: CUDA's default */
  const int64_t* class_ids; /* [count] in host memory: the classes to localize; or null: the top_k by logit */
} wgap_device_pictures;

#define WGAP_DEVICE_PICTURES_INIT {(uint32_t)sizeof(wgap_device_pictures), 0, NULL, 0, NULL, NULL}

/* As wgap_localizer_run, of a backend on a GPU; nothing but records and heat maps comes to the host. Boxes are in pixels of these
 * pictures. WGAP_DATA_ERROR where the backend takes none on a device. */
WGAP_RUNTIME_API wgap_status wgap_localizer_run_device(wgap_localizer* localizer, const wgap_device_pictures* pictures,
                                                       const wgap_run_options* options, wgap_results** results,
                                                       wgap_error* error);

/* Where the time of a call went, summed over its pictures. */
typedef struct wgap_timings {
  uint32_t struct_size;
  int32_t reserved;
  double prepare_ms; /* reading, decoding, resizing */
  double network_ms; /* with the kernel, where that runs on the network's GPU */
  double kernel_ms;  /* of the kernel on the CPU */
} wgap_timings;

#define WGAP_TIMINGS_INIT {(uint32_t)sizeof(wgap_timings), 0, 0, 0, 0}

WGAP_RUNTIME_API wgap_status wgap_results_timings(const wgap_results* results, wgap_timings* timings,
                                                  wgap_error* error);

/* Runs the bundle's golden cases through the network and the kernel: does it give here what it gave where it was made?
 * report: what `wgap selftest --json` prints, for wgap_free. WGAP_CHECK_FAILED_ERROR where a check failed. */
WGAP_RUNTIME_API wgap_status wgap_localizer_selftest(wgap_localizer* localizer, char** report, wgap_error* error);

/* -- Pictures -- */

/* Decode a JPEG or PNG file of so many bytes to 8-bit RGB pixels, EXIF orientation applied, which wgap_pixels_free
 * frees: the same bytes as the Python package's wgap.images.decode. name: what messages call it, or null. */
WGAP_RUNTIME_API wgap_status wgap_decode(const void* encoded, uint64_t bytes, const char* name, wgap_image* pixels,
                                         wgap_error* error);
WGAP_RUNTIME_API void wgap_pixels_free(wgap_image* pixels);

#ifdef __cplusplus
}
#endif

#endif
