# libwgap_runtime, static and shared, the modules of networks, and the programs. None of them links an engine's library.
find_package(JPEG REQUIRED)
find_package(PNG REQUIRED)
find_package(ZLIB REQUIRED)
set(WGAP_HEADERS ${PROJECT_SOURCE_DIR}/build/headers/usr/include)  # where cmake/fetch-headers.sh puts them
find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp HINTS ${WGAP_HEADERS} NO_CMAKE_FIND_ROOT_PATH REQUIRED)
find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
  HINTS ${ONNXRUNTIME_ROOT} ${WGAP_HEADERS} PATH_SUFFIXES include onnxruntime include/onnxruntime NO_CMAKE_FIND_ROOT_PATH)

add_library(wgap_runtime_core OBJECT
  runtime/src/sdk/bundle.cpp
  runtime/src/sdk/c_api.cpp
  runtime/src/sdk/cpus.cpp
  runtime/src/sdk/engine.cpp
  runtime/src/sdk/failure.cpp
  runtime/src/sdk/files.cpp
  runtime/src/sdk/image.cpp
  runtime/src/sdk/jpeg.cpp
  runtime/src/sdk/json.cpp
  runtime/src/sdk/localizer.cpp
  runtime/src/sdk/manifest.cpp
  runtime/src/sdk/network.cpp
  runtime/src/sdk/png.cpp
  runtime/src/sdk/safetensors.cpp
  runtime/src/sdk/selftest.cpp
  runtime/src/sdk/sha256.cpp)
set_target_properties(wgap_runtime_core PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(wgap_runtime_core PRIVATE runtime/include)
target_include_directories(wgap_runtime_core SYSTEM PRIVATE ${NLOHMANN_JSON_INCLUDE_DIR})
target_link_libraries(wgap_runtime_core PRIVATE wgap_warnings JPEG::JPEG PNG::PNG ZLIB::ZLIB)

add_library(wgap_runtime_shared SHARED $<TARGET_OBJECTS:wgap_runtime_core>)
add_library(wgap_runtime_static STATIC $<TARGET_OBJECTS:wgap_runtime_core>)
foreach(linkage shared static)
  set(library wgap_runtime_${linkage})
  set_target_properties(${library} PROPERTIES OUTPUT_NAME wgap_runtime)
  target_link_libraries(${library} PUBLIC wgap_${linkage} PRIVATE JPEG::JPEG PNG::PNG ZLIB::ZLIB ${CMAKE_DL_LIBS})
  add_library(wgap::${library} ALIAS ${library})
endforeach()
get_target_property(soversion wgap_shared SOVERSION)
if(soversion)
  set_target_properties(wgap_runtime_shared PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${soversion})
endif()
set_target_properties(wgap_runtime_shared PROPERTIES INSTALL_RPATH "$ORIGIN")
add_library(wgap::runtime ALIAS wgap_runtime_${WGAP_LINKAGE})

set(modules)
function(wgap_module name include_dir)
  add_library(wgap_${name} MODULE runtime/src/sdk/networks/${name}.cpp runtime/src/sdk/networks/library.cpp
    runtime/src/sdk/cpus.cpp runtime/src/sdk/failure.cpp runtime/src/sdk/files.cpp)
  target_include_directories(wgap_${name} PRIVATE runtime/include)
  target_include_directories(wgap_${name} SYSTEM PRIVATE ${include_dir})
  target_link_libraries(wgap_${name} PRIVATE wgap_warnings ${CMAKE_DL_LIBS})
  set(modules ${modules} wgap_${name} PARENT_SCOPE)
endfunction()
if(ONNXRUNTIME_INCLUDE_DIR)
  wgap_module(onnxruntime ${ONNXRUNTIME_INCLUDE_DIR})
else()
  message(STATUS "ONNX Runtime's header was not found (-DONNXRUNTIME_ROOT=, or cmake/fetch-headers.sh): its module is left out")
endif()
# -DTENSORRT_ROOT=: TensorRT's headers, and beside the system's those of the CUDA runtime that they include.
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h HINTS ${TENSORRT_ROOT} PATH_SUFFIXES include)
find_path(CUDA_RUNTIME_INCLUDE_DIR cuda_runtime_api.h HINTS ${CUDAToolkit_ROOT} $ENV{CUDA_PATH} /usr/local/cuda
  PATH_SUFFIXES include)
if(TENSORRT_INCLUDE_DIR AND CUDA_RUNTIME_INCLUDE_DIR)
  wgap_module(tensorrt "${TENSORRT_INCLUDE_DIR};${CUDA_RUNTIME_INCLUDE_DIR}")
  target_sources(wgap_tensorrt PRIVATE runtime/src/sdk/networks/cuda_driver.cpp)
endif()
find_package(OpenVINO QUIET COMPONENTS Runtime)  # -DOpenVINO_DIR=, as of the pip package: .../openvino/cmake
if(OpenVINO_FOUND)
  get_target_property(openvino_include openvino::runtime INTERFACE_INCLUDE_DIRECTORIES)
  wgap_module(openvino "${openvino_include}")
endif()

set(programs)
foreach(program bench localize selftest)
  add_executable(wgap-${program} runtime/src/sdk/programs/${program}.cpp)
  target_link_libraries(wgap-${program} PRIVATE wgap_warnings wgap_runtime_shared)
  set_target_properties(wgap-${program} PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
  list(APPEND programs wgap-${program})
endforeach()

if(NOT WGAP_INSTALL)
  set_target_properties(wgap_runtime_shared wgap_runtime_static ${programs} PROPERTIES EXCLUDE_FROM_ALL ON)
  return()
endif()
install(TARGETS wgap_runtime_shared wgap_runtime_static EXPORT wgapRuntime COMPONENT cpp
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES runtime/include/wgap/runtime.h runtime/include/wgap/wgap.hpp
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/wgap COMPONENT cpp)
install(TARGETS ${modules} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/wgap COMPONENT cpp)
install(TARGETS ${programs} COMPONENT cpp)
configure_file(cmake/wgap-runtime.pc.in ${PROJECT_BINARY_DIR}/wgap-runtime.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/wgap-runtime.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT cpp)
# What is compiled in comes with its licence.
find_file(NLOHMANN_JSON_LICENCE NAMES copyright LICENSE.MIT NO_DEFAULT_PATH
  HINTS ${NLOHMANN_JSON_INCLUDE_DIR}/../share/doc/nlohmann-json3-dev ${NLOHMANN_JSON_INCLUDE_DIR}/..)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/wgap COMPONENT cpp)
if(NLOHMANN_JSON_LICENCE)
  install(FILES ${NLOHMANN_JSON_LICENCE} DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/wgap RENAME nlohmann_json-LICENCE COMPONENT cpp)
endif()
install(EXPORT wgapRuntime NAMESPACE wgap:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/wgap FILE wgapRuntimeTargets.cmake
  COMPONENT cpp)
