/* Image files to boxes in C: localize BUNDLE IMAGE... */
#include <stdio.h>
#include <stdlib.h>
#include <wgap/runtime.h>

/* One picture's classes and boxes; what the pointers lead to lives as long as the results. */
static void print_picture(const char* path, const wgap_results* results, int64_t picture) {
  for (int32_t rank = 0; rank < wgap_results_classes(results, picture); ++rank) {
    const wgap_found* const found = wgap_results_found(results, picture, rank);
    printf("%s: %s %.1f%% at", path, found->class_name, 100 * (double)found->score);
    for (int32_t n = 0; n < found->box_count; ++n)
      printf(" [%g %g %g %g]", found->boxes[n].x0, found->boxes[n].y0, found->boxes[n].x1, found->boxes[n].y1);
    puts(found->degenerate ? " (nothing stands out: the whole picture)" : "");
  }
}

int main(int count, char** arguments) {
  if (count < 3) {
    fprintf(stderr, "usage: localize BUNDLE IMAGE...\n");
    return 2;
  }
  /* Every struct begins with its _INIT: the defaults, and the size by which versions are told apart. */
  wgap_error error = WGAP_ERROR_INIT;
  wgap_localizer_options options = WGAP_LOCALIZER_OPTIONS_INIT;
  options.top_k = 2;
  options.max_boxes = 3;
  options.batch_size = 4; /* pictures in a forward pass */
  wgap_localizer* localizer = NULL;
  if (wgap_localizer_open(arguments[1], &options, &localizer, &error) != WGAP_OK) {
    fprintf(stderr, "error: %s: %s\n", wgap_status_string((wgap_status)error.status), error.text);
    return 1;
  }

  const int64_t pictures = count - 2;
  wgap_picture* const given = malloc((size_t)pictures * sizeof *given);
  if (given == NULL) {
    fprintf(stderr, "error: out of memory\n");
    wgap_localizer_close(localizer);
    return 1;
  }
  for (int64_t i = 0; i < pictures; ++i) {
    given[i] = (wgap_picture)WGAP_PICTURE_INIT;
    given[i].path = arguments[2 + i];
  }
  int failed = 0;
  wgap_results* results = NULL;
  if (wgap_localizer_run(localizer, given, pictures, NULL, &results, &error) != WGAP_OK) {
    fprintf(stderr, "error: %s\n", error.text); /* nothing could be done at all */
    failed = 1;
  }
  for (int64_t i = 0; i < wgap_results_count(results); ++i) { /* 0 of null */
    const wgap_status status = wgap_results_status(results, i);
    if (status == WGAP_OK) {
      print_picture(given[i].path, results, i);
    } else { /* this picture alone */
      fprintf(stderr, "error: %s: %s\n", wgap_status_string(status), wgap_results_message(results, i));
      failed = 1;
    }
  }
  wgap_results_destroy(results);
  free(given);
  wgap_localizer_close(localizer);
  return failed;
}
