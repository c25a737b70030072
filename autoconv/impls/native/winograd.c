/* Fused Winograd convolution for one spec and one config. Above this text stand the vocabulary of _c.py, the `#define`s
 * of winograd.py and the one-dimensional transforms data_h, data_w, filter_h, filter_w, inverse_h, inverse_w.
 *
 * VW channels share a vector everywhere, so that rows of any length waste no lanes: channels-last data is read and
 * written as it lies, NCHW data passes through a square transpose on its way in and out.
 *
 * Letters: IC, OC channels of a group, GROUPS; XH x XW data, YH x YW result; PH, PW padding before; R x S taps;
 * tiles of MH x MW results need NH x NW data and as many products, POSITIONS = NH * NW; TH x TW tiles cover an image.
 * A block is BR rows of tiles by BC tiles. The products multiply TR tiles by KU = KV * VW output channels in registers.
 *
 * A filter may be a sum of PARTS smaller ones of RP x SP taps. A stride SH x SW makes PHASES: data and taps of one
 * remainder are a problem of stride 1. And a large filter is cut into PIECES of as many taps as a tile has results, so
 * that what one piece needs for a tile is what the piece before it needed for the tile's neighbour: data is
 * transformed once for all pieces, over VH x VW' tiles that reach PIECES - 1 beyond the result's.
 *
 * V [position][phase][IC / VW][tile of the block][VW]    transformed data
 * U [position][part][ic][KU]                             transformed filters of KU channels
 * M [position][tile][KU]                                 products
 *
 * FILTERS says how `run` gets them: all of U made by `pack` (TRANSFORMED), or U made CHUNK channels at a time within
 * `run`, from [KU channels][ic][tap][KU] (LAID_OUT by `pack`) or from the caller's array (PLAIN, no `pack`).
 */
#define TRANSFORMED 0
#define LAID_OUT 1
#define PLAIN 2
#define NH (MH + RP - 1)
#define NW (MW + SP - 1)
#define PHASES_H MIN(SH, R)
#define PHASES_W MIN(SW, S)
#define PHASES (PHASES_H * PHASES_W)
#define PIECES (PIECES_H * PIECES_W)
#define PARTS (PHASES * PIECES)
#define POSITIONS (NH * NW)
#define TAPS (R * S)
#define TH CEIL_DIV(YH, MH)
#define TW CEIL_DIV(YW, MW)
#define TILE_ROWS (BATCH * TH)
#define VH (TH + PIECES_H - 1)
#define DATA_ROW(row) ((row) / TH * VH + (row) % TH) /* of a row of tiles: the row of V that its first piece meets */
#define IC_BLOCKS CEIL_DIV(IC, VW)
#define KU (KV * VW)
#define OC_BLOCKS CEIL_DIV(OC, KU)
#define ROW_BLOCKS CEIL_DIV(TILE_ROWS, BR)
#define COLUMN_BLOCKS CEIL_DIV(TW, BC)
#define WHOLE_ROWS (BC == TW)
/* Tiles that are multiplied together: all of the block, or with PIECES those of a row. */
#define V_TILES (PIECES > 1 ? V_ROWS * (BC + PIECES_W - 1) + TR : ROUND_UP(BR * BC, TR))
#define M_TILES (PIECES > 1 ? BR * ROUND_UP(BC, TR) : ROUND_UP(BR * BC, TR))
#define M_COLUMNS(columns) (PIECES > 1 ? ROUND_UP(columns, TR) : (columns))
/* A vector of slack per position keeps the positions of a tile out of each other's cache sets. */
#define V_PHASE (IC_BLOCKS * V_TILES * VW)
#define V_POSITION (PHASES * V_PHASE + VW)
#define M_POSITION (M_TILES * KU + VW)
#define U_POSITION (CHUNK * KU + VW)
#define V_SIZE ((size_t)POSITIONS * V_POSITION)
#define M_SIZE ((size_t)POSITIONS * M_POSITION)
#define U_SIZE (FILTERS == TRANSFORMED ? 0 : (size_t)POSITIONS * U_POSITION)
#define FILTER_SIZE ((size_t)IC * KU * (FILTERS == LAID_OUT ? TAPS : PARTS * POSITIONS))
#define X_CHANNELS (GROUPS * IC)
#define Y_CHANNELS (GROUPS * OC)
/* Rows of tiles that are transposed together: images of a few short rows fill whole vectors that way. */
#define IN_ROWS (((STRIP - 1) * MH + NH) * SH)
#define IN_COLUMNS (WHOLE_ROWS ? XW : ((BC + PIECES_W - 2) * MW + NW) * SW)
#define OUT_COLUMNS (WHOLE_ROWS ? YW : BC * MW)
#define STRIP_SIZE ((size_t)(MAX(IN_ROWS * IN_COLUMNS, STRIP * MH * OUT_COLUMNS) + VW) * VW)
#define THREAD_SIZE ((SHARED ? 0 : V_SIZE) + M_SIZE + U_SIZE + STRIP_SIZE)

