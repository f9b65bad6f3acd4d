"""The text of runners, runtime by runtime: what loads a session and binds a call as the engine of that name does."""

from __future__ import annotations

ONNXRUNTIME = '''
def session_options():
    """As it was measured: threads, optimisation level, and how threads wait."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, SETTINGS["graph_optimization_level"]
    )
    options.execution_mode = getattr(onnxruntime.ExecutionMode, SETTINGS["execution_mode"])
    options.intra_op_num_threads = SETTINGS["intra_op_num_threads"]
    options.inter_op_num_threads = SETTINGS["inter_op_num_threads"]
    options.log_severity_level = SETTINGS["log_severity_level"]
    for key, value in SETTINGS["entries"].items():
        options.add_session_config_entry(key, value)
    return options


class Runner:
    """The network of this bundle in ONNX Runtime; `inputs` and `outputs` are (name, shape, dtype)."""

    def __init__(self, folder=HERE):
        content = checked_files(folder)
        options = session_options()
        if len(FILES) > 1:  # weights in files of their own, which the runtime opens itself: it gets what was checked
            private = tempfile.mkdtemp(prefix="akd-runner-")
            weakref.finalize(self, shutil.rmtree, private, ignore_errors=True)
            for name in content.keys() - {MODEL}:
                copy = Path(private, name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content.pop(name))
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(Path(private, MODEL).parent.resolve())
            )
        providers = [tuple(p) if isinstance(p, list) else p for p in SETTINGS["providers"]]
        wanted = SETTINGS["providers"][0] if isinstance(providers[0], str) else providers[0][0]
        self._session = self._created(content[MODEL], options, providers)
        free = {
            value.shape[0] for value in self._session.get_inputs() if value.shape and isinstance(value.shape[0], str)
        }
        if free:  # a network for any batch runs at the batch that was measured
            for name in free:
                options.add_free_dimension_override_by_name(name, BATCH)
            self._session = self._created(content[MODEL], options, providers)
        if self._session.get_providers()[0] != wanted:
            raise RuntimeError(f"asked for {wanted}, got {', '.join(self._session.get_providers())}")
        self._device = "cpu" if wanted == "CPUExecutionProvider" else "cuda"
        self.inputs = [_spec(value, value.shape) for value in self._session.get_inputs()]
        shapes = [value.shape for value in self._session.get_outputs()]
        if not all(isinstance(n, int) for shape in shapes for n in shape):  # told by one run
            shapes = [array.shape for array in self._session.run(None, noise(self.inputs))]
        self.outputs = [_spec(value, shape) for value, shape in zip(self._session.get_outputs(), shapes, strict=True)]

    @staticmethod
    def _created(model, options, providers):
        return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)

    def run(self, feeds):
        """Input name -> array in, output name -> array out."""
        names = [name for name, _, _ in self.outputs]
        return dict(zip(names, self._session.run(names, checked_feeds(self.inputs, feeds)), strict=True))

    def bind(self, feeds):
        """A call of one inference with buffers bound beforehand: what was timed."""
        value, binding = onnxruntime.OrtValue, self._session.io_binding()
        for name, array in checked_feeds(self.inputs, feeds).items():
            binding.bind_ortvalue_input(name, value.ortvalue_from_numpy(aligned_copy(array), self._device, 0))
        for name, shape, dtype in self.outputs:
            output = value.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, self._device, 0)
            binding.bind_ortvalue_output(name, output)
        run = functools.partial(self._session._sess.run_with_iobinding, binding._iobinding, onnxruntime.RunOptions())
        if self._device == "cpu":
            return run

        def run_and_wait():
            run()
            binding.synchronize_outputs()

        return run_and_wait


def _spec(value, shape):
    if not all(isinstance(n, int) for n in shape):
        raise RuntimeError(f"{value.name} has the shape {shape}, which is not fixed")
    dtype = value.type.removeprefix("tensor(").removesuffix(")")
    return value.name, tuple(shape), {"float": "float32", "double": "float64"}.get(dtype, dtype)
'''

OPENVINO = '''
class Runner:
    """The network of this bundle in OpenVINO; `inputs` and `outputs` are (name, shape, dtype)."""

    def __init__(self, folder=HERE):
        content = checked_files(folder)
        core = openvino.Core()
        if MODEL.endswith(".onnx"):
            model = core.read_model(content[MODEL])
        else:
            model = core.read_model(content[MODEL], content[WEIGHTS])
        self._compiled = core.compile_model(model, "CPU", SETTINGS)
        applied = self._compiled.get_property("INFERENCE_NUM_THREADS")
        if applied != SETTINGS["INFERENCE_NUM_THREADS"]:
            raise RuntimeError(f"asked for {SETTINGS['INFERENCE_NUM_THREADS']} threads, OpenVINO uses {applied}")
        self._request = self._compiled.create_infer_request()
        self.inputs = [_spec(port, port.get_any_name()) for port in self._compiled.inputs]
        self.outputs = [_spec(port, _output_name(port)) for port in self._compiled.outputs]

    def run(self, feeds):
        """Input name -> array in, output name -> array out."""
        arrays = list(checked_feeds(self.inputs, feeds).values())
        results = self._request.infer(dict(enumerate(arrays)), share_inputs=True)
        return {name: np.array(results[i]) for i, (name, _, _) in enumerate(self.outputs)}

    def bind(self, feeds):
        """A call of one inference with buffers bound beforehand: what was timed."""
        request = self._compiled.create_infer_request()
        inputs = [aligned_copy(array) for array in checked_feeds(self.inputs, feeds).values()]
        outputs = [aligned_copy(np.zeros(shape, dtype)) for _, shape, dtype in self.outputs]
        for i, array in enumerate(inputs):
            request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
        for i, array in enumerate(outputs):
            request.set_output_tensor(i, openvino.Tensor(array, shared_memory=True))
        infer = functools.partial(request.infer, None, share_outputs=True, decode_strings=False)

        def run_bound(_buffers=(inputs, outputs)):  # the buffers live as long as the call that uses them
            infer()

        return run_bound


def _output_name(port):
    name = str(port.get_node().get_friendly_name())
    return name.removesuffix("/sink_port_0") if name.endswith("/sink_port_0") else str(port.get_any_name())


def _spec(port, name):
    return name, tuple(port.get_shape()), np.dtype(port.get_element_type().to_dtype()).name
'''

TENSORRT = '''
class Cuda:
    """Buffers and a stream, asked of the driver's own library."""

    def __init__(self):
        self._library = ctypes.CDLL("libcuda.so.1")
        device, context, self.stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self("cuInit", 0)
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)
        self("cuStreamCreate", ctypes.byref(self.stream), 1)  # 1: waits for no other stream

    def __call__(self, name, *arguments):
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} failed with CUDA error {code}")

    def buffer(self, size_bytes):
        address = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size_bytes)))
        return address

    def write(self, address, array):
        self("cuMemcpyHtoD_v2", address, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
        self("cuCtxSynchronize")  # the copy may return before the bytes have arrived

    def read(self, address, array):
        self("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), address, ctypes.c_size_t(array.nbytes))


class Runner:
    """The engine of this bundle in TensorRT; `inputs` and `outputs` are (name, shape, dtype)."""

    def __init__(self, folder=HERE):
        plan = checked_files(folder)[MODEL]
        self._cuda = Cuda()
        self._log = tensorrt.Logger(tensorrt.Logger.ERROR)
        self._runtime = tensorrt.Runtime(self._log)
        self._runtime.engine_host_code_allowed = False
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise RuntimeError("TensorRT refused the engine: it runs on the version and GPU it was built for")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        reads = {n for n in names if self._engine.get_tensor_mode(n) == tensorrt.TensorIOMode.INPUT}
        for name in reads:
            shape = tuple(self._engine.get_tensor_shape(name))
            shape = (BATCH, *shape[1:]) if shape[:1] == (-1,) else shape
            if not self._context.set_input_shape(name, shape):
                raise RuntimeError(f"the engine does not take {name} of shape {shape}")
        if self._context.infer_shapes():
            raise RuntimeError("the engine's output shapes are not known")
        specs = {n: (n, tuple(self._context.get_tensor_shape(n)), self._dtype(n)) for n in names}
        self.inputs = [specs[n] for n in names if n in reads]
        self.outputs = [specs[n] for n in names if n not in reads]
        self._buffers = {}
        for name, shape, dtype in specs.values():
            self._buffers[name] = self._cuda.buffer(int(np.prod(shape)) * np.dtype(dtype).itemsize)
            if not self._context.set_tensor_address(name, self._buffers[name].value):
                raise RuntimeError(f"no buffer for {name}")

    def _dtype(self, name):
        return np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(name))).name

    def run(self, feeds):
        """Input name -> array in, output name -> array out."""
        self.bind(feeds)()
        results = {name: np.empty(shape, dtype) for name, shape, dtype in self.outputs}
        for name, array in results.items():
            self._cuda.read(self._buffers[name], array)
        return results

    def bind(self, feeds):
        """A call of one inference on inputs that lie on the GPU: what was timed, without transfers."""
        for name, array in checked_feeds(self.inputs, feeds).items():
            self._cuda.write(self._buffers[name], array)

        def enqueue_and_wait():
            if not self._context.execute_async_v3(self._cuda.stream.value or 0):
                raise RuntimeError("an inference failed")
            self._cuda("cuStreamSynchronize", self._cuda.stream)

        return enqueue_and_wait
'''
