/* wgap.h is C11 and enough to get a box: a bright 2x2 corner of a 4x4 map, worked out by hand. */
#include <stdio.h>
#include <string.h>

#include "wgap/wgap.h"

static int fail(const char* what) {
  fprintf(stderr, "c_header: %s\n", what);
  return 1;
}

int main(void) {
  const float weight[2] = {-1.0f, 0.5f}; /* two classes, one channel */
  const float logits[2] = {2.0f, 1.0f};
  const float features[16] = {8, 8, 0, 0, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  wgap_classifier* classifier = NULL;
  wgap_workspace* workspace = NULL;
  wgap_error error = WGAP_ERROR_INIT;
  if (wgap_classifier_create(weight, sizeof weight, 2, 1, &classifier, &error) != WGAP_OK) return fail(error.text);
  if (wgap_workspace_create(1, NULL, &workspace, &error) != WGAP_OK) return fail(error.text);

  wgap_input input = WGAP_INPUT_INIT;
  input.images = 1, input.classes = 2, input.channels = 1, input.height = input.width = 4;
  input.logits = logits, input.logits_bytes = sizeof logits;
  input.features = features, input.features_bytes = sizeof features;
  wgap_options options = WGAP_OPTIONS_INIT;
  options.map_height = options.map_width = 4;
  wgap_record record;
  float heatmap[16];
  double edge_means[WGAP_LEVELS + 1];
  memset(&record, 0x5a, sizeof record);
  wgap_output output = WGAP_OUTPUT_INIT;
  output.records = &record, output.records_bytes = sizeof record;
  output.heatmaps = heatmap, output.heatmaps_bytes = sizeof heatmap;
  output.edge_means = edge_means, output.edge_means_bytes = sizeof edge_means;
  if (wgap_localize(workspace, classifier, &input, &options, &output, &error) != WGAP_OK) return fail(error.text);
  if (record.struct_size != sizeof record || record.status != WGAP_OK || record.boxes != 1) return fail("wrong record");
  if (record.class_id != 0 || record.logit != 2.0f || record.degenerate != 0) return fail("wrong class");
  if (record.score < 0.7310585f || record.score > 0.7310587f) return fail("wrong softmax");
  if (record.box[0] != 0 || record.box[1] != 0 || record.box[2] != 2 || record.box[3] != 2) return fail("wrong box");
  if (heatmap[0] != 1.0f || heatmap[15] != 0.0f) return fail("wrong map");
  /* Every edge mean is 1, so no difference exceeds their mean: CAM's 0.20. */
  if (record.level != 4 || record.threshold != 0.2 || edge_means[0] != 1.0) return fail("wrong level");

  const int64_t class_ids[1] = {1};
  input.class_ids = class_ids, input.class_ids_bytes = sizeof class_ids;
  if (wgap_localize(workspace, classifier, &input, &options, &output, NULL) != WGAP_OK || record.class_id != 1)
    return fail("class id ignored");
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", WGAP_VERSION_MAJOR, WGAP_VERSION_MINOR, WGAP_VERSION_PATCH);
  if (strcmp(wgap_version(), version) != 0) return fail("the library is not the header's version");
  wgap_workspace_destroy(workspace);
  wgap_classifier_destroy(classifier);
  return 0;
}
