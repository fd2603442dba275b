/**
 * The device a suite is about: the CPU, or what RLV_TEST_DEVICE names (soft, metal). `scripts/test soft` runs the
 * operation table, the invariances, the goldens and the sampler on software Metal this way.
 */
import { Device, type DeviceName } from "../src/device/device.ts";

const named = process.env.RLV_TEST_DEVICE ?? "cpu";
if (!["cpu", "soft", "metal"].includes(named))
  throw new Error(`RLV_TEST_DEVICE=${named}: cpu, soft or metal`);

export const testDeviceName = named as DeviceName;

/** `threads` matters to the CPU device alone. */
export function openTestDevice(threads: number | null = null): Device {
  return Device.open(testDeviceName, threads);
}
