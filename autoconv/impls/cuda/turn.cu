// Transposes matrices, many of one size: how arrays come into another memory layout and back.
//
//   to[layer, column, row] = from[layer, row, column]
//
// A row of `from` and a column of `to` have no gaps between their numbers; the other distances are arguments, in elements.
//
// Block map. 32 x 8 threads turn 32 x 32 numbers through shared memory, so that both sides are read and written in
// runs of 32; blockIdx.x: columns, y: rows, z: layers, the latter two in strides of the grid. 33 numbers to a row of shared
// memory: its columns lie in different banks. Memory decides: each number is read once and written once, 4 loads of
// each of 256 threads are under way at a time, and 8 blocks fill a multiprocessor.
//
// Macros: ELEMENT.

extern "C" __global__ void __launch_bounds__(256)
turn(const ELEMENT* __restrict__ from, ELEMENT* __restrict__ to, int rows, i64 columns, int layers, i64 from_row,
     i64 to_column, i64 from_layer, i64 to_layer) {
  __shared__ ELEMENT tile[32][33];
  const int x = (int)threadIdx.x, y = (int)threadIdx.y;
  const i64 left = blockIdx.x * 32LL;
  for (int layer = (int)blockIdx.z; layer < layers; layer += (int)gridDim.z)
    for (int top = (int)blockIdx.y * 32; top < rows; top += (int)gridDim.y * 32) {
#pragma unroll
      for (int i = 0; i < 32; i += 8)
        if (top + y + i < rows && left + x < columns)
          tile[y + i][x] = from[layer * from_layer + (top + y + i) * from_row + left + x];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 32; i += 8)
        if (left + y + i < columns && top + x < rows)
          to[layer * to_layer + (left + y + i) * to_column + top + x] = tile[x][y + i];
      __syncthreads();
    }
}
