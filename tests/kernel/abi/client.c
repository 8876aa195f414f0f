/* A program that knows wgap.h alone, whichever version of it: a bright 2x2 corner of a 4x4 map, worked out by hand, and
 * its mirror image. Prints a line for each record; where a call is refused, its name, status and sentence, exit code 3. */
#include <stdio.h>
#include <string.h>

#include "wgap/wgap.h"

static int refused(const char* call, wgap_status status, const wgap_error* error) {
  printf("%s %d %s\n", call, (int)status, error->text);
  return 3;
}

int main(void) {
  const float weight[2] = {-1.0f, 0.5f}; /* two classes, one channel */
  const float logits[4] = {2.0f, 1.0f, 0.0f, 3.0f};
  const float features[32] = {8, 8, 0, 0, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                              0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 0, 0, 8, 8};
  wgap_error error = WGAP_ERROR_INIT;
  wgap_classifier* classifier = NULL;
  wgap_workspace* workspace = NULL;
  wgap_status status = wgap_classifier_create(weight, sizeof weight, 2, 1, &classifier, &error);
  if (status != WGAP_OK) return refused("classifier", status, &error);
  status = wgap_workspace_create(1, NULL, &workspace, &error);
  if (status != WGAP_OK) return refused("workspace", status, &error);

  const unsigned char grey[1] = {77};
  unsigned char larger[4] = {0, 0, 0, 0};
  wgap_image from = WGAP_IMAGE_INIT, to = WGAP_IMAGE_INIT;
  from.height = from.width = from.channels = 1, from.row_bytes = 1, from.data = (uint8_t*)grey, from.bytes = 1;
  to.height = to.width = 2, to.channels = 1, to.row_bytes = 2, to.data = larger, to.bytes = 4;
  status = wgap_resize(&from, &to, &error);
  if (status != WGAP_OK) return refused("resize", status, &error);
  printf("grey %d %d %d %d\n", larger[0], larger[1], larger[2], larger[3]);

  wgap_options options = WGAP_OPTIONS_INIT;
  options.map_height = options.map_width = 4, options.top_k = 2;
  status = wgap_rule_parse("fixed:0.25", "recombined", &options.rule, &error);
  if (status != WGAP_OK) return refused("rule", status, &error);

  wgap_input input = WGAP_INPUT_INIT;
  input.images = 2, input.classes = 2, input.channels = 1, input.height = input.width = 4;
  input.logits = logits, input.logits_bytes = sizeof logits;
  input.features = features, input.features_bytes = sizeof features;
  wgap_record records[4];
  memset(records, 0x5a, sizeof records);
  wgap_output output = WGAP_OUTPUT_INIT;
  output.records = records, output.records_bytes = sizeof records;
  status = wgap_localize(workspace, classifier, &input, &options, &output, &error);
  if (status != WGAP_OK) return refused("localize", status, &error);
  for (int i = 0; i < 4; ++i) {
    const wgap_record* const r = &records[i];
    printf("class %d logit %.0f level %d threshold %.2f box %d %d %d %d known %d\n", r->class_id, (double)r->logit,
           r->level, r->threshold, r->box[0], r->box[1], r->box[2], r->box[3], r->struct_size <= sizeof *r);
  }
  wgap_workspace_destroy(workspace);
  wgap_classifier_destroy(classifier);
  return 0;
}
