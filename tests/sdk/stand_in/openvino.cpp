// OpenVINO's C library, which this one is linked to, with a count of the compiled models.
#include <dlfcn.h>
#include <openvino/c/openvino.h>

#include <atomic>
#include <cstdarg>

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
  if (properties != 6) return UNKNOW_EXCEPTION;  // what the module passes, and so what can be passed on
  const char* p[6];
  std::va_list given;
  va_start(given, compiled);
  for (const char*& property : p) property = va_arg(given, const char*);
  va_end(given);
  ++made;
  return real(&ov_core_compile_model, "ov_core_compile_model")(core, model, device, properties, compiled, p[0], p[1],
                                                               p[2], p[3], p[4], p[5]);
}

void ov_compiled_model_free(ov_compiled_model_t* compiled) {
  ++freed;
  real(&ov_compiled_model_free, "ov_compiled_model_free")(compiled);
}

int counted_made() { return made; }
int counted_alive() { return made - freed; }
}
