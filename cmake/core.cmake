# The kernel as one object library, shared by the C++ libraries, the Python module and the tests.

# Our own sources only: nanobind's are not held to these. Errors only where we develop: a newer compiler may know more.
# Clang tells of every loop that it was asked to vectorise and did better with, such as one that became a memset.
set(WGAP_WARNINGS -Wall -Wextra -Wpedantic $<$<BOOL:${WGAP_WERROR}>:-Werror>
  $<$<COMPILE_LANG_AND_ID:CXX,Clang,AppleClang>:-Wno-pass-failed>)
add_library(wgap_warnings INTERFACE)
target_compile_options(wgap_warnings INTERFACE ${WGAP_WARNINGS})
if(WGAP_SANITIZE)
  add_compile_options(-fsanitize=${WGAP_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -O1)
  add_link_options(-fsanitize=${WGAP_SANITIZE})
endif()

add_library(wgap_core OBJECT
  runtime/src/kernel/c_api.cpp
  runtime/src/kernel/checks.cpp
  runtime/src/kernel/kernel_baseline.cpp
  runtime/src/kernel/rule.cpp
  runtime/src/kernel/targets.cpp
  runtime/src/kernel/workspace.cpp)
set_target_properties(wgap_core PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(wgap_core PUBLIC
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/runtime/include> PRIVATE runtime/src/kernel)
target_link_libraries(wgap_core PRIVATE wgap_warnings PUBLIC Threads::Threads)
# No contraction of a*b+c: the same bits on every instruction set. The last two change no value; they let loops with
# rounding and comparisons become vector code. The first ones undo what a parent project may have asked for.
set(WGAP_ARITHMETIC -fno-fast-math -fno-finite-math-only -fno-associative-math -fno-reciprocal-math -fsigned-zeros
  -ffp-contract=off -fno-math-errno -fno-trapping-math)
target_compile_options(wgap_core PRIVATE ${WGAP_ARITHMETIC})
if(NOT WGAP_SANITIZE)  # vectorised loops are the product; CMake's RelWithDebInfo stops at -O2
  target_compile_options(wgap_core PRIVATE $<$<NOT:$<CONFIG:Debug>>:-O3>)
endif()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  target_sources(wgap_core PRIVATE runtime/src/kernel/kernel_avx2.cpp runtime/src/kernel/kernel_avx512.cpp)
  target_compile_definitions(wgap_core PRIVATE WGAP_X86)
  set_source_files_properties(runtime/src/kernel/kernel_avx2.cpp PROPERTIES
    COMPILE_OPTIONS "-mavx2;-mbmi;-mpopcnt;-mtune=haswell")
  set_source_files_properties(runtime/src/kernel/kernel_avx512.cpp PROPERTIES
    COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vbmi2;-mbmi;-mpopcnt;-mtune=icelake-server;-mprefer-vector-width=512")
endif()
