/** Preloaded into the processes of a run: the n-th allocation of the native library's buffers and threads fails. */
import { lib } from "../../src/device/lib.ts";

lib().rlv_fail_allocation(Number(process.env.RLV_TORTURE_ALLOCATION));
