# libwgap, static and shared, with packages that find_package(wgap) and pkg-config find.
add_library(wgap_shared SHARED $<TARGET_OBJECTS:wgap_core>)
add_library(wgap_static STATIC $<TARGET_OBJECTS:wgap_core>)
# Before 1.0 a minor version may change the interface. A wheel holds no links, so there is one name there.
if(NOT WGAP_PYTHON)
  set_target_properties(wgap_shared PROPERTIES
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
endif()
target_compile_definitions(wgap_static INTERFACE WGAP_STATIC)
# A project in C alone, whose linker brings no C++ library.
set(WGAP_CXX_RUNTIME stdc++)
if("c++" IN_LIST CMAKE_CXX_IMPLICIT_LINK_LIBRARIES)
  set(WGAP_CXX_RUNTIME c++)
endif()
target_link_libraries(wgap_static INTERFACE "$<$<LINK_LANGUAGE:C>:${WGAP_CXX_RUNTIME};m>")
foreach(library wgap_shared wgap_static)
  set_target_properties(${library} PROPERTIES OUTPUT_NAME wgap)
  target_include_directories(${library} INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/runtime/include>)
  target_link_libraries(${library} PUBLIC Threads::Threads)
  add_library(wgap::${library} ALIAS ${library})
endforeach()
# wgap::wgap is what BUILD_SHARED_LIBS says. Where it says nothing: shared on its own, static as a part of something.
if(BUILD_SHARED_LIBS OR (PROJECT_IS_TOP_LEVEL AND NOT DEFINED BUILD_SHARED_LIBS))
  set(WGAP_LINKAGE shared)
else()
  set(WGAP_LINKAGE static)
endif()
add_library(wgap::wgap ALIAS wgap_${WGAP_LINKAGE})

if(NOT WGAP_INSTALL)
  set_target_properties(wgap_shared wgap_static PROPERTIES EXCLUDE_FROM_ALL ON)  # built where they are linked
  return()
endif()
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/wgap)
install(TARGETS wgap_shared wgap_static EXPORT wgap COMPONENT cpp INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY runtime/include/wgap DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp
  PATTERN runtime.h EXCLUDE PATTERN wgap.hpp EXCLUDE)
install(EXPORT wgap NAMESPACE wgap:: DESTINATION ${package} FILE wgapTargets.cmake COMPONENT cpp)
# The end of the sentence that names what is absent.
if(WGAP_RUNTIME)
  set(WGAP_HOW_TO_GET_MORE "the headers of that engine were not found when wgap was built, see docs/embedding-cpp.md")
elseif(WGAP_PYTHON)
  set(WGAP_HOW_TO_GET_MORE "in wgap's sources run: pip install --force-reinstall -C cmake.define.WGAP_RUNTIME=ON .")
else()
  set(WGAP_HOW_TO_GET_MORE "build wgap with -DWGAP_RUNTIME=ON")
endif()
configure_package_config_file(cmake/wgapConfig.cmake.in ${PROJECT_BINARY_DIR}/wgapConfig.cmake
  INSTALL_DESTINATION ${package} PATH_VARS CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/wgapConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/wgapConfig.cmake ${PROJECT_BINARY_DIR}/wgapConfigVersion.cmake
  DESTINATION ${package} COMPONENT cpp)
file(RELATIVE_PATH WGAP_PREFIX_FROM_PC ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(cmake/wgap.pc.in ${PROJECT_BINARY_DIR}/wgap.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/wgap.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT cpp)
