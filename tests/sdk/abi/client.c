/* A program that knows runtime.h alone, whichever version of it, and hands over each of its structs: client BUNDLE
 * Prints what it is told; where a call is refused, its name, status and sentence, exit code 3. */
#include <stdio.h>
#include <stdlib.h>

#include "wgap/runtime.h"

static wgap_bundle_info info = WGAP_BUNDLE_INFO_INIT;

static int refused(const char* call, wgap_status status, const wgap_error* error) {
  printf("%s %d %s\n", call, (int)status, error->text);
  return 3;
}

/* The more, the nearer to the last row. */
static wgap_status run(void* context, const uint8_t* images, int64_t count, uint32_t wanted, wgap_outputs* outputs,
                       wgap_error* error) {
  const size_t cells = (size_t)(info.feature_height * info.feature_width), n = (size_t)info.channels * cells;
  float *const logits = calloc((size_t)info.classes, sizeof(float)), *const features = calloc(n, sizeof(float));
  (void)context, (void)images, (void)wanted, (void)error;
  if (count != 1 || logits == NULL || features == NULL) return WGAP_BACKEND_ERROR;
  logits[1] = 2;
  for (size_t i = 0; i < n; ++i) features[i] = (float)(i % cells);
  outputs->logits = logits, outputs->logits_bytes = (size_t)info.classes * sizeof(float);
  outputs->features = features, outputs->features_bytes = n * sizeof(float);
  outputs->lease = features;
  return WGAP_OK;
}

static void release(void* context, wgap_outputs* outputs) {
  ++*(int*)context;
  free((void*)outputs->logits);
  free(outputs->lease);
}

int main(int count, char** arguments) {
  wgap_error error = WGAP_ERROR_INIT;
  wgap_bundle* bundle = NULL;
  wgap_localizer* localizer = NULL;
  wgap_results* results = NULL;
  wgap_status status;
  int released = 0;
  if (count != 2 || (status = wgap_bundle_open(arguments[1], 1, &bundle, &error)) != WGAP_OK)
    return refused("bundle", WGAP_BUNDLE_ERROR, &error);
  if ((status = wgap_bundle_describe(bundle, &info, &error)) != WGAP_OK) return refused("describe", status, &error);
  printf("%d x %d, %d classes\n", (int)info.input_height, (int)info.input_width, (int)info.classes);

  wgap_engine_host host = WGAP_ENGINE_HOST_INIT;
  void* plan = NULL;
  uint64_t plan_bytes = 0;
  host.batch = 1, host.flavor = "tensorrt", host.version = "10.0";
  status = wgap_bundle_engine(bundle, &host, NULL, NULL, 0, &plan, &plan_bytes, NULL, &error);
  if (status != WGAP_ENGINE_ERROR) return refused("engine", status, &error);
  wgap_bundle_close(bundle);

  wgap_network network = WGAP_NETWORK_INIT;
  network.context = &released, network.run = run, network.release = release;
  network.name = "client", network.version = "1";
  wgap_localizer_options options = WGAP_LOCALIZER_OPTIONS_INIT;
  options.rule = "fixed:0.5", options.max_boxes = 2, options.network = &network;
  if ((status = wgap_localizer_open(arguments[1], &options, &localizer, &error)) != WGAP_OK)
    return refused("open", status, &error);
  printf("%s\n", wgap_localizer_backend(localizer));

  static uint8_t rgb[2 * 4 * 3];
  wgap_image image = WGAP_IMAGE_INIT;
  image.height = 2, image.width = 4, image.channels = 3;
  image.data = rgb, image.row_bytes = 4 * 3, image.bytes = sizeof rgb;
  wgap_picture pictures[2] = {WGAP_PICTURE_INIT, WGAP_PICTURE_INIT}; /* as far apart as this header says */
  pictures[0].pixels = pictures[1].pixels = &image;
  pictures[0].class_id = pictures[1].class_id = 2;
  wgap_run_options asked = WGAP_RUN_OPTIONS_INIT;
  asked.heatmaps = 1;
  if ((status = wgap_localizer_run(localizer, pictures, 2, &asked, &results, &error)) != WGAP_OK)
    return refused("run", status, &error);
  for (int i = 0; i < 2; ++i) {
    const wgap_found* const found = wgap_results_found(results, i, 0);
    printf("%d %s %.3f %d %.3f %d", (int)found->class_id, found->class_name, (double)found->score, (int)found->level,
           found->threshold, (int)found->degenerate);
    for (int n = 0; n < found->box_count; ++n)
      printf(" [%g %g %g %g]", found->boxes[n].x0, found->boxes[n].y0, found->boxes[n].x1, found->boxes[n].y1);
    printf(" %g of %d x %d\n", (double)found->heatmap[found->heatmap_height * found->heatmap_width - 1],
           (int)found->heatmap_height, (int)found->heatmap_width);
  }
  wgap_timings timings = WGAP_TIMINGS_INIT;
  if ((status = wgap_results_timings(results, &timings, &error)) != WGAP_OK) return refused("timings", status, &error);
  printf("timed %d\n", timings.prepare_ms > 0 && timings.network_ms > 0 && timings.kernel_ms > 0);
  wgap_results_destroy(results);
  wgap_localizer_close(localizer);
  printf("released %d\n", released);
  return 0;
}
