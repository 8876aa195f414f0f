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
  if (wgap_classifier_create(weight, 2, 1, &classifier) != WGAP_OK) return fail("no classifier");
  if (wgap_workspace_create(1, NULL, &workspace) != WGAP_OK) return fail("no workspace");

  wgap_input input = {features, logits, 1, 1, 4, 4};
  wgap_options options = WGAP_OPTIONS_INIT;
  options.map_height = 4;
  options.map_width = 4;
  wgap_record record;
  float heatmap[16];
  memset(&record, 0x5a, sizeof record);
  const wgap_status status = wgap_localize(workspace, &input, classifier, &options, NULL, &record, heatmap);
  if (status != WGAP_OK) return fail(wgap_status_string(status));
  if (record.class_id != 0 || record.degenerate != 0) return fail("wrong class");
  if (record.score < 0.7310585f || record.score > 0.7310587f) return fail("wrong softmax");
  if (record.box[0] != 0 || record.box[1] != 0 || record.box[2] != 2 || record.box[3] != 2) return fail("wrong box");
  if (heatmap[0] != 1.0f || heatmap[15] != 0.0f) return fail("wrong map");
  /* Every edge mean is 1, so no difference exceeds their mean: CAM's 0.20. */
  if (record.level != 4 || record.threshold != 0.2 || record.edge_mean[0] != 1.0) return fail("wrong level");

  const int64_t classes[1] = {1};
  if (wgap_localize(workspace, &input, classifier, &options, classes, &record, NULL) != WGAP_OK || record.class_id != 1)
    return fail("class id ignored");
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", WGAP_VERSION_MAJOR, WGAP_VERSION_MINOR, WGAP_VERSION_PATCH);
  if (strcmp(wgap_version(), version) != 0) return fail("the library is not the header's version");
  wgap_workspace_destroy(workspace);
  wgap_classifier_destroy(classifier);
  return 0;
}
