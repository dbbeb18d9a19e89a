# Fails when an object of one instruction set holds inline code that other sets, or the rest of the program, hold too. The linker
# keeps one copy of such code, perhaps one with instructions that this CPU does not have.
#
#     cmake -DNM=nm -DISA=avx2 -DOBJECTS=a.o,b.o -P no_shared_inline_code.cmake
string(REPLACE "," ";" OBJECTS "${OBJECTS}")
string(LENGTH ${ISA} length)
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9a-f]+ [WVu] [^\n]+" weak "${symbols}")
  foreach(symbol IN LISTS weak)
    if(NOT symbol MATCHES "${length}${ISA}" AND NOT symbol MATCHES "DW\\.ref|__clang_call_terminate")
      message(SEND_ERROR "${object}: ${symbol} is not in the namespace of ${ISA}")
    endif()
  endforeach()
endforeach()
