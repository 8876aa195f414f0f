// What a kernel answers, as the C interface tells it.
#pragma once

#include <cstring>

#include "wgap/kernel/problem.h"
#include "wgap/wgap.h"

namespace wgap {

inline void tell(const Result& result, wgap_record* record) {
  switch (result.outcome) {
    case kDone: record->status = WGAP_OK; break;
    case kBadLogits: record->status = WGAP_LOGITS_NOT_FINITE; break;
    default: record->status = WGAP_FEATURES_NOT_FINITE; break;
  }
  if (record->status != WGAP_OK) return;
  record->class_id = result.class_id;
  record->score = result.score;
  record->logit = result.logit;
  record->level = result.level;
  record->degenerate = result.degenerate;
  record->threshold = result.threshold;
  std::memcpy(record->box, result.box, sizeof record->box);
  std::memcpy(record->edge_mean, result.edge_mean, sizeof record->edge_mean);
}

}  // namespace wgap
