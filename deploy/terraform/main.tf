# The provider says which cluster; this module only installs the chart there.
resource "helm_release" "operator" {
  name             = var.name
  namespace        = var.namespace
  create_namespace = true
  chart            = coalesce(var.chart, "${path.module}/../chart")
  version          = var.chart_version
  values           = [yamlencode(var.values)]
  wait             = true
  timeout          = var.timeout_s
}
