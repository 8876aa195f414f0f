# libwgap_runtime, static and shared, the modules of networks, and the programs. None of them links an engine's library.
find_package(JPEG REQUIRED)
find_package(PNG REQUIRED)
find_package(ZLIB REQUIRED)
set(WGAP_HEADERS ${PROJECT_SOURCE_DIR}/build/headers/usr/include)  # where cmake/fetch-headers.sh puts them
find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp HINTS ${WGAP_HEADERS} NO_CMAKE_FIND_ROOT_PATH)
if(NOT NLOHMANN_JSON_INCLUDE_DIR)
  message(FATAL_ERROR "nlohmann/json.hpp was not found; run cmake/fetch-headers.sh, or name its folder in -DNLOHMANN_JSON_INCLUDE_DIR=")
endif()
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

# The one's struct has the name of jpeg.cpp's; a test takes the other's place.
set_source_files_properties(runtime/src/sdk/png.cpp runtime/src/sdk/networks/refit.cpp
  PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)

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
  if(WGAP_PYTHON)  # from wgap/lib/wgap to the other packages of the same Python
    target_compile_definitions(wgap_${name} PRIVATE WGAP_SITE_PACKAGES="/../../..")
  endif()
  set(modules ${modules} wgap_${name} PARENT_SCOPE)
endfunction()
# On GPUs: the kernel as nvcc makes it, for each architecture and as PTX for those to come, lies in the module.
find_program(WGAP_NVCC nvcc HINTS ${CUDAToolkit_ROOT} $ENV{CUDA_PATH} /usr/local/cuda PATH_SUFFIXES bin)
set(WGAP_CUDA_ARCHITECTURES "75;80;86;89;90;100;120" CACHE STRING "GPUs that the kernel is compiled for; nvcc's that it knows")
if(WGAP_NVCC)
  get_filename_component(cuda_root ${WGAP_NVCC} REALPATH)
  get_filename_component(cuda_root ${cuda_root}/../.. ABSOLUTE)
  find_path(CUDA_RUNTIME_INCLUDE_DIR cuda_runtime_api.h HINTS ${cuda_root} ${CUDAToolkit_ROOT} PATH_SUFFIXES include
    NO_CMAKE_FIND_ROOT_PATH)
endif()
if(NOT WGAP_NVCC OR NOT CUDA_RUNTIME_INCLUDE_DIR)
  message(STATUS "nvcc and CUDA's headers were not found (-DCUDAToolkit_ROOT=): the modules of GPUs are left out")
  set(WGAP_GPU OFF)
else()
  set(WGAP_GPU ON)
  file(STRINGS ${CUDA_RUNTIME_INCLUDE_DIR}/cuda_runtime_api.h cuda_version REGEX "^#define CUDART_VERSION ")
  string(REGEX REPLACE ".* ([0-9]+)[0-9][0-9][0-9]$" "\\1" cuda_major "${cuda_version}")
  execute_process(COMMAND ${WGAP_NVCC} --list-gpu-arch OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)
  set(targets)
  foreach(architecture ${WGAP_CUDA_ARCHITECTURES})
    if(known MATCHES "compute_${architecture}\n")
      set(code sm_${architecture})
      if(NOT targets)
        set(code [${code},compute_${architecture}])  # the oldest serves those between and after them
      endif()
      list(APPEND targets -gencode arch=compute_${architecture},code=${code})
    else()
      message(STATUS "${WGAP_NVCC} knows no sm_${architecture}: the kernel is not compiled for it")
    endif()
  endforeach()
  set(fatbin ${CMAKE_CURRENT_BINARY_DIR}/wgap_kernel.fatbin)
  file(GLOB kernel_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/runtime/include/wgap/kernel/*.h)
  add_custom_command(OUTPUT ${fatbin} VERBATIM DEPENDS ${kernel_headers} runtime/src/sdk/networks/kernel.cu
    COMMENT "Compiling the kernel for GPUs: ${WGAP_CUDA_ARCHITECTURES}"
    COMMAND ${WGAP_NVCC} -fatbin -std=c++17 --fmad=false --threads 0 -I ${PROJECT_SOURCE_DIR}/runtime/include ${targets}
      -ccbin ${CMAKE_CXX_COMPILER} ${PROJECT_SOURCE_DIR}/runtime/src/sdk/networks/kernel.cu -o ${fatbin})
  add_custom_target(wgap_kernel_code DEPENDS ${fatbin})
endif()
function(wgap_gpu_module name include_dir)
  wgap_module(${name} "${include_dir};${CUDA_RUNTIME_INCLUDE_DIR}")
  set(modules ${modules} PARENT_SCOPE)
  list(TRANSFORM WGAP_GPU_SOURCES PREPEND runtime/src/sdk/networks/)
  target_sources(wgap_${name} PRIVATE ${WGAP_GPU_SOURCES})
  add_dependencies(wgap_${name} wgap_kernel_code)
  target_compile_options(wgap_${name} PRIVATE ${WGAP_ARITHMETIC})
  set_source_files_properties(runtime/src/sdk/networks/cuda_kernel.cpp PROPERTIES OBJECT_DEPENDS ${fatbin}
    COMPILE_DEFINITIONS "WGAP_FATBIN=\"${fatbin}\";WGAP_CUDA_MAJOR=${cuda_major}")
endfunction()
set(WGAP_GPU_SOURCES cuda_driver.cpp cuda_kernel.cpp gpu_network.cpp)

if(ONNXRUNTIME_INCLUDE_DIR)
  wgap_module(onnxruntime ${ONNXRUNTIME_INCLUDE_DIR})
  target_sources(wgap_onnxruntime PRIVATE runtime/src/sdk/networks/onnx_session.cpp)
  if(WGAP_GPU)
    wgap_gpu_module(onnxruntime_cuda ${ONNXRUNTIME_INCLUDE_DIR})
    target_sources(wgap_onnxruntime_cuda PRIVATE runtime/src/sdk/networks/onnx_session.cpp)
  endif()
else()
  message(STATUS "ONNX Runtime's header was not found (-DONNXRUNTIME_ROOT=, or cmake/fetch-headers.sh): its module is left out")
endif()
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h HINTS ${TENSORRT_ROOT} PATH_SUFFIXES include)
if(TENSORRT_INCLUDE_DIR AND WGAP_GPU)
  wgap_gpu_module(tensorrt ${TENSORRT_INCLUDE_DIR})
  target_sources(wgap_tensorrt PRIVATE runtime/src/sdk/networks/refit.cpp)
endif()
# -DOpenVINO_DIR=, as of the pip package: .../openvino/cmake, which a wheel finds in the Python that builds it.
find_package(OpenVINO QUIET COMPONENTS Runtime HINTS "${Python_SITELIB}/openvino/cmake")
if(OpenVINO_FOUND)
  get_target_property(openvino_include openvino::runtime INTERFACE_INCLUDE_DIRECTORIES)
  wgap_module(openvino "${openvino_include}")
  target_sources(wgap_openvino PRIVATE runtime/src/sdk/sha256.cpp)
endif()

set(WGAP_PROGRAM_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
if(WGAP_PYTHON)  # from the environment's programs, or those of `pip install --target`, which lie beside the package
  foreach(packages site-packages dist-packages)
    list(APPEND WGAP_PROGRAM_RPATH
      "$ORIGIN/../lib/python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}/${packages}/${CMAKE_INSTALL_LIBDIR}")
  endforeach()
endif()
set(programs)
foreach(program bench localize selftest)
  add_executable(wgap-${program} runtime/src/sdk/programs/${program}.cpp)
  target_link_libraries(wgap-${program} PRIVATE wgap_warnings wgap_runtime_shared)
  set_target_properties(wgap-${program} PROPERTIES INSTALL_RPATH "${WGAP_PROGRAM_RPATH}")
  list(APPEND programs wgap-${program})
endforeach()

include(cmake/wgapModules.cmake)
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
install(FILES cmake/wgapModules.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/wgap COMPONENT cpp)
configure_file(cmake/wgap-runtime.pc.in ${PROJECT_BINARY_DIR}/wgap-runtime.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/wgap-runtime.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT cpp)
# What is compiled in comes with its licence.
if(NOT WGAP_PYTHON)
  set(WGAP_LICENCES ${CMAKE_INSTALL_DATADIR}/doc/wgap)
endif()
find_file(NLOHMANN_JSON_LICENCE NAMES copyright LICENSE.MIT NO_DEFAULT_PATH
  HINTS ${NLOHMANN_JSON_INCLUDE_DIR}/../share/doc/nlohmann-json3-dev ${NLOHMANN_JSON_INCLUDE_DIR}/..)
if(NLOHMANN_JSON_LICENCE)
  install(FILES ${NLOHMANN_JSON_LICENCE} DESTINATION ${WGAP_LICENCES} RENAME nlohmann_json-LICENSE COMPONENT cpp)
elseif(WGAP_PYTHON)
  message(FATAL_ERROR "the licence of nlohmann's JSON was expected near ${NLOHMANN_JSON_INCLUDE_DIR}: it goes where its code goes; "
    "name its file in -DNLOHMANN_JSON_LICENCE=")
endif()
if(NOT WGAP_PYTHON)
  install(FILES LICENSE DESTINATION ${WGAP_LICENCES} COMPONENT cpp)
endif()
install(EXPORT wgapRuntime NAMESPACE wgap:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/wgap FILE wgapRuntimeTargets.cmake
  COMPONENT cpp)
