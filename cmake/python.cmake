# The Python module wgap._native, linked statically against the core.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
find_package(nanobind CONFIG REQUIRED)
nanobind_add_module(_native NB_STATIC runtime/src/bindings/bindings.cpp)
target_link_libraries(_native PRIVATE wgap_core)
target_include_directories(_native PRIVATE runtime/src/kernel)
target_compile_definitions(_native PRIVATE WGAP_STATIC)
set_source_files_properties(runtime/src/bindings/bindings.cpp PROPERTIES COMPILE_OPTIONS "${WGAP_WARNINGS}")
install(TARGETS _native LIBRARY DESTINATION wgap COMPONENT python)

# The C++ package lies in the Python one: wgap.get_include() and wgap.get_cmake_path() name the places.
set(CMAKE_INSTALL_LIBDIR wgap/lib)
set(CMAKE_INSTALL_INCLUDEDIR wgap/include)
if(SKBUILD_SCRIPTS_DIR)  # the environment's own folder of programs
  set(CMAKE_INSTALL_BINDIR ${SKBUILD_SCRIPTS_DIR})
endif()

# Its licence, and that of the map within it, must go where their code goes.
file(GLOB nanobind_licence "${nanobind_DIR}/../../nanobind-*.dist-info/licenses/LICENSE"
     "${nanobind_DIR}/../../nanobind-*.dist-info/LICENSE")
if(NOT nanobind_licence)
  message(FATAL_ERROR "nanobind's LICENSE was expected beside ${nanobind_DIR}/../..; install nanobind with pip")
endif()
list(GET nanobind_licence 0 nanobind_licence)
file(READ "${nanobind_DIR}/../ext/robin_map/include/tsl/robin_map.h" robin_map LIMIT 2000)
string(REGEX MATCH "/\\*.*\\*/" robin_map_licence "${robin_map}")
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/robin_map-LICENSE" "${robin_map_licence}\n")
set(WGAP_LICENCES wgap/licenses)
if(SKBUILD_METADATA_DIR)
  set(WGAP_LICENCES "${SKBUILD_METADATA_DIR}/licenses")
endif()
install(FILES "${nanobind_licence}" DESTINATION "${WGAP_LICENCES}" RENAME nanobind-LICENSE COMPONENT python)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/robin_map-LICENSE" DESTINATION "${WGAP_LICENCES}" COMPONENT python)
