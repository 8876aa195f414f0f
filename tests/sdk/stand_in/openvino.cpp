// OpenVINO's C library, which this one is linked to, with a count of the compiled models.
#include <dlfcn.h>
#include <openvino/c/openvino.h>

#include <atomic>

namespace {

std::atomic<int> made{0}, freed{0};

template <class Function>
Function* real(Function*, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ov_status_e ov_core_compile_model(const ov_core_t* core, const ov_model_t* model, const char* device,
                                  const std::size_t properties, ov_compiled_model_t** compiled, ...) {
  if (properties != 0) return UNKNOW_EXCEPTION;  // the module sets them on the core
  ++made;
  return real(&ov_core_compile_model, "ov_core_compile_model")(core, model, device, 0, compiled);
}

ov_status_e ov_core_import_model(const ov_core_t* core, const char* content, const std::size_t size, const char* device,
                                 ov_compiled_model_t** compiled) {
  ++made;
  return real(&ov_core_import_model, "ov_core_import_model")(core, content, size, device, compiled);
}

void ov_compiled_model_free(ov_compiled_model_t* compiled) {
  ++freed;
  real(&ov_compiled_model_free, "ov_compiled_model_free")(compiled);
}

int counted_made() { return made; }
int counted_alive() { return made - freed; }
}
