# cmake -D URL=<address> -P can_download.cmake: an error where it is not to be had. Nothing is kept.
file(DOWNLOAD ${URL} TIMEOUT 60 STATUS result)
if(NOT result MATCHES "^0;")
  message(FATAL_ERROR "${URL}: ${result}")
endif()
