# The Python module wgap._native, linked statically against the core.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
find_package(nanobind CONFIG REQUIRED)
nanobind_add_module(_native NB_STATIC runtime/src/bindings/bindings.cpp)
target_link_libraries(_native PRIVATE wgap_core)
target_include_directories(_native PRIVATE runtime/src/kernel)
target_compile_definitions(_native PRIVATE WGAP_STATIC)
set_source_files_properties(runtime/src/bindings/bindings.cpp PROPERTIES COMPILE_OPTIONS "${WGAP_WARNINGS}")
install(TARGETS _native LIBRARY DESTINATION wgap COMPONENT python)
