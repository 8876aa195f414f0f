# libwgap, static and shared, with a package that find_package(wgap) finds.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

add_library(wgap_shared SHARED $<TARGET_OBJECTS:wgap_core>)
add_library(wgap_static STATIC $<TARGET_OBJECTS:wgap_core>)
set_target_properties(wgap_shared PROPERTIES OUTPUT_NAME wgap EXPORT_NAME wgap
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
set_target_properties(wgap_static PROPERTIES OUTPUT_NAME wgap EXPORT_NAME wgap_static)
target_compile_definitions(wgap_static INTERFACE WGAP_STATIC)
foreach(library wgap_shared wgap_static)
  target_include_directories(${library} INTERFACE
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/runtime/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(${library} PUBLIC Threads::Threads)
endforeach()
add_library(wgap::wgap ALIAS wgap_shared)
add_library(wgap::wgap_static ALIAS wgap_static)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/wgap)
install(TARGETS wgap_shared wgap_static EXPORT wgap COMPONENT cpp)
install(DIRECTORY runtime/include/wgap DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
install(EXPORT wgap NAMESPACE wgap:: DESTINATION ${package} FILE wgapTargets.cmake COMPONENT cpp)
configure_package_config_file(cmake/wgapConfig.cmake.in ${PROJECT_BINARY_DIR}/wgapConfig.cmake
  INSTALL_DESTINATION ${package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/wgapConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/wgapConfig.cmake ${PROJECT_BINARY_DIR}/wgapConfigVersion.cmake
  DESTINATION ${package} COMPONENT cpp)
