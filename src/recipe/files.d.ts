declare module "*.jsonl" {
  const path: string;
  export default path;
}
declare module "*.safetensors" {
  const path: string;
  export default path;
}
