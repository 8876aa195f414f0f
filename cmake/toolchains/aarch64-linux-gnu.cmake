# Builds for 64-bit ARM on another machine; its programs, the tests among them, run in QEMU. Debian and Ubuntu have both:
# g++-aarch64-linux-gnu and qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
# The libraries of the runtime, where cmake/fetch-headers.sh arm64 has put them.
get_filename_component(WGAP_ARM ${CMAKE_CURRENT_LIST_DIR}/../../build/headers-arm64 ABSOLUTE)
if(EXISTS ${WGAP_ARM}/fetched)
  list(APPEND CMAKE_FIND_ROOT_PATH ${WGAP_ARM})
  set(CMAKE_CXX_FLAGS_INIT "-isystem \"${WGAP_ARM}/usr/include/aarch64-linux-gnu\"")
  set(CMAKE_EXE_LINKER_FLAGS_INIT "\"-Wl,-rpath-link,${WGAP_ARM}/usr/lib/aarch64-linux-gnu\"")
endif()
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
