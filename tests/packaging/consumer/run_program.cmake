# Runs an installed verify_checkpoint: each run ends well and prints what is expected of it.
cmake_minimum_required(VERSION 3.22)
function(expect words)
  execute_process(
    COMMAND ${PROGRAM} ${ARGN}
    OUTPUT_VARIABLE printed
    RESULT_VARIABLE result
    ERROR_VARIABLE printed)
  string(FIND "${printed}" "${words}" found)
  if(NOT result EQUAL 0 OR found EQUAL -1)
    message(FATAL_ERROR "verify_checkpoint ${ARGN}: ${result}, without \"${words}\":\n${printed}")
  endif()
endfunction()
expect("Known families" --help)
expect("2 of 2 layers, 16 of 16 rows were looked at" ${CHECKPOINT} --no-svd --summary)
expect("${MODELS}/tiny-vanilla.safetensors" --no-svd --summary)
expect("4 of 4 layers, 32 of 32 rows were looked at" --no-svd --summary)
